"""One folder per kind of problem, behind the protocols in base.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Kind, Metric
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


@contextmanager
def naming(problem: str) -> Iterator[None]:
    """Prefix errors of a kind with the problem's name."""
    try:
        yield
    except ParamsError as error:
        if str(error).startswith("params.yaml"):
            raise
        raise ParamsError(f"params.yaml: {problem}.{error}") from error
    except DataError as error:
        raise type(error)(f"{problem}: {str(error).removeprefix(f'{problem}: ')}") from error
