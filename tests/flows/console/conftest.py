"""Fixtures of the console's tests over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.flows.console import operated
from tests.projects import Deployed


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, deployed: Deployed) -> Layout:
    """For tests that look."""
    return operated.lay(tmp_path_factory.mktemp("operated"), deployed)


@pytest.fixture
def layout(made: Layout, tmp_path: Path) -> Layout:
    """A copy, for tests that act."""
    return projects.copy(made, tmp_path / "project")


@pytest.fixture(scope="package")
def reader(made: Layout) -> Iterator[httpx.Client]:
    """A visitor of `made`."""
    with operated.open_console(made) as client:
        yield client
