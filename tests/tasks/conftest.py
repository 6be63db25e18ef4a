"""The kind of problem that the tests of the stages use."""

import pytest

from evergreen.tasks import problems
from tests.plain_kind import Plain


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """The plain kind, in place of whatever kind params.yaml names."""
    kind = Plain()
    monkeypatch.setattr(problems, "kind", lambda name: kind)
    return kind
