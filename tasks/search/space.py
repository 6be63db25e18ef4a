"""The space of a search: the models of a kind, their hyper-parameters and ranges, narrowed by tune.models and tune.space."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from evergreen.tasks.config.params import Problem, Range
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Config, Kind

Space = dict[str, dict[str, Range]]
"""Model -> hyper-parameter -> range; simple models before complex ones, the baseline first."""
SCALARS = (bool, int, float, str, type(None))


def narrow_space(kind: Kind, section: Problem, problem: str) -> Space:
    """The space of `kind`, restricted to tune.models, with the ranges of tune.space in place of the kind's own.

    Raises ParamsError for a model or a hyper-parameter that the kind does not have, and for an invalid range.
    """
    own, tune, key = kind.space(section), section.tune, f"params.yaml: {problem}.tune"
    for where, model in [*(("models", model) for model in tune.models or ()), *(("space", model) for model in tune.space)]:
        if model not in own:
            raise ParamsError(f"{key}.{where}: {model}: unknown model{nearest(model, own)}")
    chosen = {model: dict(own[model]) for model in own if tune.models is None or model in tune.models}
    for model, ranges in tune.space.items():
        if model in chosen:
            chosen[model] |= check_ranges(ranges, {**kind.defaults(model, section), **own[model]}, f"{key}.space.{model}")
    return chosen


def check_ranges(ranges: Mapping[str, Range], known: Mapping[str, Any], key: str) -> dict[str, Range]:
    """`ranges`, checked. `known`: hyper-parameter -> its own range or default; an integer one makes the new range integer.

    Raises ParamsError, which names `key`, for an unknown hyper-parameter and for an invalid range.
    """
    found = {}
    for name, each in ranges.items():
        if name not in known or name == "model":
            names = [each for each in known if each != "model"]
            raise ParamsError(f"{key}.{name}: unknown hyper-parameter{nearest(name, names)}")
        if each.values is not None and not (each.values and all(isinstance(value, SCALARS) for value in each.values)):
            raise ParamsError(f"{key}.{name}: values must be one or more numbers, texts, booleans or nulls")
        if each.low is not None and each.log and each.low <= 0:
            raise ParamsError(f"{key}.{name}: low {each.low:g} must be above 0 on a logarithmic scale")
        own = known[name]
        integer = own.integer if isinstance(own, Range) else type(own) is int
        found[name] = each.model_copy(update={"integer": each.integer or (integer and each.values is None)})
    return found


def has_choice(space: Space, model: str) -> bool:
    """Whether `model` has a hyper-parameter with more than one value."""
    return any(len(points(each, 2)) > 1 for each in space[model].values())


def clamp_config(config: Config, ranges: Mapping[str, Range]) -> Config:
    """`config` with each value moved into its range: a default may lie outside the range of tune.space."""
    return {**config, **{name: _clamp(config.get(name), each) for name, each in ranges.items()}}


def _clamp(value: Any, each: Range) -> Any:
    if each.values is not None:
        return value if value in each.values else each.values[0]
    low, high = bounds(each)
    value = min(max(low if value is None else value, low), high)
    return int(value) if each.integer else float(value)


def bounds(each: Range) -> tuple[float, float]:
    """Both ends of an interval; not for a range of values."""
    assert each.low is not None
    assert each.high is not None
    return each.low, each.high


def points(each: Range, count: int) -> list[Any]:
    """The values of a range, or `count` points of an interval: both ends included, evenly spaced on its own scale.

    >>> points(Range(low=1, high=100, log=True), 3)
    [1.0, 10.0, 100.0]
    """
    if each.values is not None:
        return list(each.values)
    low, high = bounds(each)
    steps = [step / (count - 1) for step in range(count)]
    spaced = [low * (high / low) ** step if each.log else low + (high - low) * step for step in steps]
    return list(dict.fromkeys(_clamp(round(point) if each.integer else point, each) for point in spaced))


def grid(space: Space, defaults: Mapping[str, Config], count: int) -> Iterator[Config]:
    """Each point of the full product of each model, without the defaults; `count` points per interval."""
    for model, ranges in space.items():
        for values in itertools.product(*(points(each, count) for each in ranges.values())):
            config = {**defaults[model], **dict(zip(ranges, values, strict=True))}
            if config != defaults[model]:
                yield config
