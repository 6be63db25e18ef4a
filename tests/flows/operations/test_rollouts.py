"""Decisions from the command line stand without the page."""

import logging
from contextlib import nullcontext

import pytest

from evergreen.flows import settings
from evergreen.flows.operations import rollouts, status
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.errors import ModelError, StorageError
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.kills import KilledError
from tests.projects import Deployed

CANARY = Rollout(strategy="canary", steps=(0.5,), step_minutes=600, timeout_hours=100)


@pytest.fixture
def layout(deployed: Deployed, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """`dear` with three versions, the second of which is champion; the page cannot be written."""
    layout = deployed(tmp_path / "shop", ("dear",))
    projects.deploy(layout, "dear", "logistic", C=0.1)
    projects.register(layout, "dear", "logistic", C=0.01)

    def page(layout: Layout) -> None:
        raise StorageError(f"{layout.page}: No space left on device")

    monkeypatch.setattr(status, "page", page)
    return layout


def test_a_rollback_without_its_page_is_done_once(layout: Layout, caplog: pytest.LogCaptureFixture):
    """An error would have a person roll back a second time, and further."""
    with caplog.at_level(logging.WARNING):
        decision = rollouts.roll_back(layout, "dear", None, "ann", "complaints")
    assert decision.version == settings.deployments(layout).champion("dear") == 1
    assert "No space left on device. The rollback is done; evergreen report rebuilds the page" in caplog.text


@pytest.mark.parametrize("during_rollout", [False, True])
def test_a_rollback_killed_during_its_page_and_called_again_goes_no_further(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, during_rollout: bool
):
    """The same call finds what it did; another reason, or a third call, is a rollback of its own."""
    if during_rollout:
        settings.rollouts(layout).begin("dear", 3, CANARY, "ann", "try it")
    with monkeypatch.context() as patched:
        patched.setattr(status, "page", _kill)
        with pytest.raises(KilledError, match="kill -9"):
            rollouts.roll_back(layout, "dear", None, "ann", "complaints")
    done = settings.deployments(layout).history("dear")
    assert rollouts.roll_back(layout, "dear", None, "ann", "complaints") == done[-1]
    assert settings.deployments(layout).history("dear") == done
    with pytest.raises(ModelError, match="nothing was deployed before it") if not during_rollout else nullcontext():
        assert rollouts.roll_back(layout, "dear", None, "ann", "complaints").action == "rollback"


def test_a_rollback_after_one_that_was_killed_for_another_reason_is_its_own(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    settings.rollouts(layout).begin("dear", 3, CANARY, "ann", "try it")
    with monkeypatch.context() as patched:
        patched.setattr(status, "page", _kill)
        with pytest.raises(KilledError, match="kill -9"):
            rollouts.roll_back(layout, "dear", None, "ann", "slow")
    assert rollouts.roll_back(layout, "dear", None, "ann", "complaints").version == 1


def _kill(_: Layout) -> None:
    raise KilledError("kill -9")


def test_a_promotion_without_its_page_is_done(layout: Layout, caplog: pytest.LogCaptureFixture):
    settings.rollouts(layout).begin("dear", 3, CANARY, "ann", "try it")
    with caplog.at_level(logging.WARNING):
        rollouts.steer(layout, "dear", "promote", "ann", "good")
    assert settings.deployments(layout).champion("dear") == 3
    assert "The promotion is done" in caplog.text
