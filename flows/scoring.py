"""Batch scoring: the champion's answer to each row of a file."""

from pathlib import Path

from flows import settings
from tasks import score
from tasks.errors import ModelError
from tasks.layout import Layout
from tasks.params import Params


def run(layout: Layout, params: Params, problem: str, data: Path, out: Path, version: int | None) -> score.Result:
    """Score `data` into `out` with `version`, or the champion for None. Raises what tasks.score and the registry raise."""
    registry = settings.registry(layout)
    chosen = version or settings.deployments(layout).champion(problem)
    if chosen is None:
        raise ModelError(f"{problem}: nothing is deployed; run evergreen train {problem}, or name a --version")
    return score.run(params, problem, layout, registry.load(problem, chosen), chosen, data, out)
