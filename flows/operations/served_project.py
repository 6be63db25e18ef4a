"""The project that a server serves: its folder, or else the project as it was registered, in an empty folder."""

import logging
import os
from pathlib import Path

from evergreen.flows import settings
from evergreen.flows.current_project import KEY
from evergreen.tasks.core.errors import ProjectError, RegistryError
from evergreen.tasks.core.paths import Layout, find
from evergreen.tasks.release import serving_files

log = logging.getLogger(__name__)


def find_or_fetch(root: Path) -> Layout:
    """The project around `root`; where there is none, the params of the project in the registry are written into `root`.

    That needs EVERGREEN_DATABASE and the address of an MLflow server, and EVERGREEN_PROJECT where the server has several
    projects. The files of each problem follow when its model is loaded (see release.serving_files). A folder that was fetched
    before gets the newest params again, or keeps what it has while the registry does not answer. Raises ProjectError where
    neither is there, ModelError where MLflow refuses, RegistryError where it does not answer.
    """
    try:
        found = find(root)
    except ProjectError as error:
        place = Layout(root.resolve())
        if not settings.has_shared_state(place):
            raise ProjectError(
                f"{error} To serve without a project folder, set EVERGREEN_DATABASE and EVERGREEN_MLFLOW_URI to those of the "
                "project."
            ) from error
        _fetch_params(place)
        return place
    if serving_files.is_fetched(found):
        try:
            _fetch_params(found)
        except RegistryError as error:
            log.warning("serve: the params of the project stay as they were fetched before: %s", error)
    return found


def _fetch_params(layout: Layout) -> None:
    """The params of the newest version of any problem of the project."""
    from evergreen.tasks.release.model_registry import Registry

    found = settings.read(layout)
    names = Registry(found.mlflow_uri, found.artifacts, layout.root, patient=False).names()
    project = _choose(sorted({name.rpartition(".")[0] for name in names}), os.environ.get(KEY, ""))
    registry = Registry(found.mlflow_uri, found.artifacts, layout.root, project, patient=False)
    problems = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == project]
    newest = max(
        (each for problem in problems for each in registry.versions(problem)), key=lambda each: each.created, default=None
    )
    if newest is None:
        raise ProjectError(f"{KEY}: the project {project} has no registered version. Train it first: evergreen train")
    serving_files.fetch_params(registry, newest.problem, newest.version, layout)
    log.info("serve: %s has the params of %s v%d, as registered", layout.root, newest.problem, newest.version)


def _choose(projects: list[str], wanted: str) -> str:
    """The one project, or that whose name or id is `wanted`. The registry has NAME-ID of a project with an id.

    >>> _choose(["store-7f3a", "south"], "store"), _choose(["store-7f3a", "south"], "7f3a")
    ('store-7f3a', 'store-7f3a')
    """
    fitting = [each for each in projects if not wanted or each.startswith(f"{wanted}-") or each.endswith(f"-{wanted}")]
    matching = [wanted] if wanted in projects else fitting
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(each or "one without a name" for each in projects) or "none"
    if wanted:
        said = "fits several projects" if matching else "is no project"
        raise ProjectError(f"{KEY} = {wanted}: {said} of the registry; it has {known}.")
    raise ProjectError(f"{KEY}: is not set, and the registry has {known}. Set it to the project to serve.")
