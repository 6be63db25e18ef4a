"""One folder per kind of problem, behind the protocols in base.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from evergreen.tasks.config.params import KindName
from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Config, Data, Kind, Metric, OutOfCore
from evergreen.tasks.problems.prediction_type import PredictionType


def kind(name: KindName) -> Kind:
    """The kind called `name`; only its own module (and the libraries it owns) is imported."""
    return import_module(f"evergreen.tasks.problems.{name}.kind").KIND


def predictions(name: KindName) -> PredictionType:
    """What the predictions of the kind called `name` are; no library of training is imported."""
    return import_module(f"evergreen.tasks.problems.{name}.predictions").PREDICTIONS


def metric(of: Kind, name: str | None, key: str) -> Metric:
    """The metric called `name`, or the primary one for None. Raises ParamsError, naming `key`, for an unknown one."""
    known = {each.name: each for each in of.metrics}
    if name is not None and name not in known:
        raise ParamsError(f"params.yaml: {key} = {name}: unknown metric{nearest(name, known)}")
    return of.metrics[0] if name is None else known[name]


def load_stored(of: Kind, folder: Path, section: Any) -> Data:
    """The data of a problem; where its table is too large for memory, models learn from all of it and predict all of it."""
    return of.load_stored(folder, section) if isinstance(of, OutOfCore) else of.load(folder, section)


def scope(of: Kind, data: Data, config: Config, section: Any) -> Data:
    """`data` as models of `config` learn from it: all that is stored, or a sample for those that need it in memory."""
    return of.scope(data, config, section) if isinstance(of, OutOfCore) else data


def describe_sample(of: Kind, data: Data) -> dict[str, float]:
    """`in_memory` and `stored`, numbers of rows, and the `limit_mb` of learning, where `data` is a sample; else empty."""
    found = of.sampled(data) if isinstance(of, OutOfCore) else None
    if found is None:
        return {}
    return {"in_memory": found[0], "stored": found[1], "limit_mb": memory.learning_limit() / 2**20}


@contextmanager
def naming(problem: str) -> Iterator[None]:
    """Prefix errors of a kind with the problem's name."""
    try:
        yield
    except ParamsError as error:
        if str(error).startswith(("params.yaml", "EVERGREEN_")):
            raise
        raise ParamsError(f"params.yaml: {problem}.{error}") from error
    except DataError as error:
        raise type(error)(f"{problem}: {str(error).removeprefix(f'{problem}: ')}") from error
