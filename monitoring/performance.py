"""How good the predictions are: realised, where truths are known; estimated, before they are. Pure functions of frames.

An estimate draws truths as the model itself would have them and scores the predictions against each draw:

    classification   a class by the probabilities that were said (confidence-based performance estimation), straightened first
                     by earlier rows with truth where that lowers their logarithmic loss
    regression       the prediction plus an error that an earlier row with truth had: one whose prediction was about as high
    recommendation   none: a list says nothing of how likely its items are bought
    clustering       nothing is ever true or false of a group

It sees what changes in what goes in. That the same rows come to another end than they did (concept drift) it cannot see; a
cohort's `off` says afterwards how far it was from what was realised.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Estimate, Performance
from evergreen.tasks.config.params import Table
from evergreen.tasks.core import bootstrap
from evergreen.tasks.problems.base import Kind

PREFIX = "probability_"
LEAST = 10
"""A score needs so many truths."""
ENOUGH = 30
"""Errors are drawn from so many earlier rows with truth, at least, in each bin of predictions too."""
BINS = 20
"""Most bins of predictions."""
DRAWS = 200
MOST = 10_000
"""Of more rows so many, whole entities, are drawn from; intervals are then as wide as those of all rows would be."""
EARLIER = 8
"""Most cohorts before one that an estimate learns from."""
RIPE = 0.8
"""A window's truths are known where its matured share is at least this, times that of the window with the largest."""
ANYBODY = {"entity": pl.String, "truth_at": pl.Datetime("us", "UTC")}
NOTHING = Estimate(score=None, low=None, high=None, rows=0, reason="no predictions")

Seen = tuple[datetime, Predictions]
"""A window of one version's predictions, and its end."""


def measure(
    kind: Kind, section: Any, expected: Estimate, windows: Sequence[Seen], known: pl.DataFrame | None = None, seed: int = 0
) -> Performance | None:
    """What is known of the performance of one version at the end of the last of `windows` (oldest first, which is now).

    `expected`: its score when it was judged. `known`: rows of `kind.predict` that it did not learn from, with their truth, such
    as those it was judged on; the estimate learns from them and from the windows before the last. None for a kind without
    truth. The same seed gives the same intervals.
    """
    if kind.name == "clustering":
        return None
    metric, now = kind.metrics[0], windows[-1][1]
    frames = [judged(kind, section, predicted) for _, predicted in windows]
    place = _ripest(frames)
    labelled = [frame.filter(pl.col("truth").is_not_null()) for frame in frames[:-1]]
    return Performance(
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        expected=expected,
        realised=realised(kind, section, frames[place], seed),
        realised_until=windows[place][0] if _matured(frames[place]) else None,
        estimated=estimated(kind, section, frames[-1], [*([known] if known is not None else []), *labelled], seed),
        matured=_matured(frames[-1]) if now.rows.height else 0.0,
    )


def _ripest(frames: Sequence[pl.DataFrame]) -> int:
    """Place of the newest of `frames` whose truths are known; of none, the last."""
    shares = [_matured(frame) if _labels(frame) >= LEAST else 0.0 for frame in frames]
    ripe = [place for place, share in enumerate(shares) if share and share >= RIPE * max(shares)]
    some = [place for place, frame in enumerate(frames) if _labels(frame)]
    return (ripe or some or [len(frames) - 1])[-1]


def _labels(frame: pl.DataFrame) -> int:
    return frame.height - frame["truth"].null_count()


def _matured(frame: pl.DataFrame) -> float:
    return _labels(frame) / frame.height if frame.height else 0.0


class Judge:
    """Scores cohorts one after the other, as the ledger asks for them."""

    def __init__(self, kind: Kind, section: Any, seed: int = 0) -> None:
        self._kind, self._section, self._seed = kind, section, seed
        self._past: dict[int, list[pl.DataFrame]] = {}

    def __call__(self, predicted: Predictions, until: datetime) -> tuple[Estimate, Estimate]:
        """Realised, and as estimated from earlier cohorts of the version whose truths were known at `until`."""
        frame = judged(self._kind, self._section, predicted)
        past = self._past.setdefault(predicted.rows["version"][0], [])
        known = [each.filter(pl.col("truth_at") <= until) for each in past]
        past[:] = [*past[1 - EARLIER :], frame]
        found = realised(self._kind, self._section, frame, self._seed)
        return found, estimated(self._kind, self._section, frame, known, self._seed)


def judge(kind: Kind, section: Any, seed: int = 0) -> Judge | None:
    """What scores cohorts; None for a kind without truth."""
    return None if kind.name == "clustering" else Judge(kind, section, seed)


# What was predicted, as the kind's own score takes it


def judged(kind: Kind, section: Any, predicted: Predictions) -> pl.DataFrame:
    """The rows as `kind.predict` gives them, in their order: entity, truth and truth_at (null where unknown), and the answer.

    Of lists entity, truth (items bought) and the metric of each; null for a user who bought nothing. A row about nobody has an
    entity of its own. Truths that cannot be ones of this kind, such as a word for an amount, are null.
    """
    rows = predicted.rows.rename({"label": "truth", "label_at": "truth_at"}).with_row_index("__row")
    nobody = pl.format("row {}", pl.col("__row"))
    rows = rows.with_columns(pl.coalesce(pl.col("entity").cast(pl.String), nobody).alias("entity"))
    make = {"classification": _classes, "regression": _amounts, "recommendation": _lists}[kind.name]
    return make(rows, kind, section)


def _classes(rows: pl.DataFrame, kind: Kind, section: Any) -> pl.DataFrame:
    names = [name for name in rows.columns if name.startswith(PREFIX)]
    positive = section.features.positive if isinstance(section.features, Table) else None
    if len(names) == 2 and f"{PREFIX}{positive}" in names:
        names.sort(key=lambda name: name == f"{PREFIX}{positive}")
    labels = [name.removeprefix(PREFIX) for name in names]
    chances = [pl.col(name).cast(pl.Float64, strict=False).fill_null(0.0) for name in names]
    truth = rows["truth"]
    if labels and all(_is_number(label) for label in labels):
        truth = truth.cast(pl.Float64, strict=False)
    else:
        truth = truth.cast(pl.String)
        if labels and all(_is_number(label) or label in ("true", "false") for label in labels):
            truth = truth.str.to_lowercase()
    known = truth if labels else truth.clear(len(truth))
    frame = rows.select("entity", "truth_at", *chances).with_columns(known.alias("truth"))
    frame = frame.with_columns(threshold=pl.lit(_threshold(rows, names, labels), pl.Float64))
    return frame.filter(pl.sum_horizontal(names) > 0) if names else frame.clear()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _threshold(rows: pl.DataFrame, names: Sequence[str], labels: Sequence[str]) -> float | None:
    """The probability of the second of two classes from which it was said, as far as the answers show it."""
    if len(names) != 2 or "prediction" not in rows.columns:
        return None
    said = rows["prediction"].cast(pl.String).str.replace(r"\.0$", "") == labels[1]
    chance = rows[names[1]].cast(pl.Float64, strict=False)
    above, below = chance.filter(said).min(), chance.filter(~said).max()
    if isinstance(above, float):
        return above
    return min(1.0, float(np.nextafter(below, 2))) if isinstance(below, float) else None


def _amounts(rows: pl.DataFrame, kind: Kind, section: Any) -> pl.DataFrame:
    if "prediction" not in rows.columns:
        return pl.DataFrame(schema={**ANYBODY, "truth": pl.Float64, "prediction": pl.Float64})
    numbers = (pl.col(name).cast(pl.Float64, strict=False).alias(name) for name in ("truth", "prediction"))
    return rows.select(*ANYBODY, *numbers).filter(pl.col("prediction").is_not_null())


def _lists(rows: pl.DataFrame, kind: Kind, section: Any) -> pl.DataFrame:
    from evergreen.tasks.problems.recommender.ranking_metrics import per_user

    schema = {**ANYBODY, "truth": pl.List(pl.String), "prediction": pl.Float64}
    if "items" not in rows.columns:
        return pl.DataFrame(schema=schema)
    k, texts = section.pipeline.k, pl.List(pl.String)
    bought = rows["truth"].cast(texts) if rows["truth"].dtype.base_type() == pl.List else rows["truth"].clear(rows.height)
    rows = rows.select(*ANYBODY, pl.col("items").cast(texts), bought.cast(texts).alias("truth"))
    hits, relevant = np.zeros((rows.height, k), bool), np.zeros(rows.height, int)
    for row, (items, truth) in enumerate(rows.select("items", "truth").iter_rows()):
        wanted = set(truth or ())
        relevant[row] = len(wanted)
        hits[row, : min(len(items or ()), k)] = [each in wanted for each in (items or ())[:k]]
    value = per_user(hits, relevant)[kind.metrics[0].name]
    return rows.with_columns(prediction=pl.Series(value, nan_to_null=True)).select(list(schema))


def _score(kind: Kind, section: Any) -> Callable[[pl.DataFrame], float]:
    """The primary metric of rows of `judged`."""
    if kind.name == "recommendation":
        return _mean
    return lambda frame: kind.score(frame, section)[kind.metrics[0].name]


def _mean(frame: pl.DataFrame) -> float:
    values = frame["prediction"].drop_nulls().to_numpy()
    return float(values.mean()) if len(values) else math.nan


# Realised


def realised(kind: Kind, section: Any, frame: pl.DataFrame, seed: int = 0) -> Estimate:
    """The score of rows of `judged` whose truth is known, with its bootstrap interval over entities."""
    if frame.is_empty():
        return NOTHING
    frame, score = frame.filter(pl.col("truth").is_not_null()), _score(kind, section)
    rows = frame.height
    if rows < LEAST:
        return _none(rows, "no truth is known yet" if not rows else f"{rows} truths are known; a score needs {LEAST}")
    found = score(frame)
    if not math.isfinite(found):
        return _none(rows, _undefined(kind, frame["truth"]))
    drawn, narrower = _thinned(frame, seed)
    scores = [score(part) for (part,) in bootstrap.draw([drawn], DRAWS, seed)]
    return _interval(found, scores, rows, narrower, section.evaluate.confidence)


def _undefined(kind: Kind, truth: pl.Series) -> str:
    name = kind.metrics[0].name
    if kind.name == "recommendation":
        return f"none of the {len(truth):,} bought anything, so there is no {name}"
    if truth.n_unique() == 1:
        return (
            f"all {len(truth):,} truths are {truth[0]:g}, so there is no {name}"
            if truth.dtype.is_numeric()
            else (f"all {len(truth):,} truths are {truth[0]}, so there is no {name}")
        )
    return f"{name} is not defined on these {len(truth):,} rows"


def _none(rows: int, reason: str) -> Estimate:
    return Estimate(score=None, low=None, high=None, rows=rows, reason=reason)


def _thinned(frame: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, float]:
    """At most about MOST rows, all of those of the entities that are kept; and by what factor intervals of all rows are
    narrower than those of these."""
    if frame.height <= MOST:
        return frame, 1.0
    names = frame["entity"].unique(maintain_order=True)
    share = MOST / frame.height
    kept = names.sample(max(1, round(len(names) * share)), seed=seed)
    return frame.filter(pl.col("entity").is_in(kept.implode())), math.sqrt(len(kept) / len(names))


def _interval(found: float, scores: Sequence[float], rows: int, narrower: float, confidence: float) -> Estimate:
    low, high = bootstrap.interval(scores, confidence)
    if not math.isfinite(low):
        return Estimate(score=found, low=None, high=None, rows=rows, reason="too few of one class for an interval")
    middle = float(np.nanmedian(scores))
    low, high = (found + (end - middle) * narrower for end in (low, high))
    return Estimate(score=found, low=low, high=high, rows=rows)


# Estimated


def estimated(kind: Kind, section: Any, frame: pl.DataFrame, known: Sequence[pl.DataFrame] = (), seed: int = 0) -> Estimate:
    """What the score of rows of `judged` will be, from their answers alone; `known`: rows with truth that came before them."""
    if kind.name == "recommendation":
        return _none(frame.height, "lists do not say how likely their items are bought")
    if frame.is_empty():
        return NOTHING
    if frame.height < LEAST:
        return _none(frame.height, f"{frame.height} predictions; a score needs {LEAST}")
    known = [each.filter(pl.col("truth").is_not_null()) for each in known]
    drawn, narrower = _thinned(frame, seed)
    draw = (_drawn_classes if kind.name == "classification" else _drawn_amounts)(drawn, known, seed)
    if isinstance(draw, str):
        return _none(frame.height, draw)
    score = _score(kind, section)
    scores = np.array([score(part) for part in draw])
    if np.isfinite(scores).sum() <= DRAWS / 2:
        return _none(
            frame.height, f"one class is too unlikely on these {frame.height:,} rows to expect a {kind.metrics[0].name}"
        )
    return _interval(float(np.nanmean(scores)), scores.tolist(), frame.height, narrower, section.evaluate.confidence)


def _drawn_classes(frame: pl.DataFrame, known: Sequence[pl.DataFrame], seed: int) -> Iterator[pl.DataFrame]:
    """Resamples of `frame` with a truth drawn for each row by its probabilities."""
    names = [name for name in frame.columns if name.startswith(PREFIX)]
    chances = _straightened(frame.select(names).to_numpy(), names, known, seed)
    bounds = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    text = frame["truth"].dtype == pl.String
    labels = pl.Series([name.removeprefix(PREFIX) for name in names])
    labels = labels if text else labels.cast(pl.Float64)
    random = np.random.default_rng(seed)
    rows = frame.with_row_index("__row")
    for (part,) in bootstrap.draw([rows], DRAWS, seed):
        places = (random.random(part.height)[:, None] > bounds[part["__row"].to_numpy()][:, :-1]).sum(axis=1)
        yield part.with_columns(labels[places].alias("truth"))


def _straightened(chances: np.ndarray, names: Sequence[str], known: Sequence[pl.DataFrame], seed: int) -> np.ndarray:
    """Probabilities after the calibration that `known` calls for; as they are where it calls for none."""
    from evergreen.tasks.problems.classification.kind import arrays
    from evergreen.tasks.problems.tabular import calibration

    rows = [
        arrays(each.select("truth", *names, "threshold")) for each in known if each.height and set(names) <= set(each.columns)
    ]
    if not rows:
        return chances
    truth, said = np.concatenate([each[0] for each in rows]), np.concatenate([each[1] for each in rows])
    if np.bincount(truth[truth >= 0], minlength=len(names)).min() < ENOUGH:
        return chances
    found = calibration.helping(truth, said, ("sigmoid",), seed)
    return found.apply(chances) if found else chances


def _drawn_amounts(frame: pl.DataFrame, known: Sequence[pl.DataFrame], seed: int) -> Iterator[pl.DataFrame] | str:
    """Resamples of `frame` with a truth drawn for each row: its prediction, and an error of a row in the same bin of `known`,
    which is itself drawn anew each time. Why there are none, where `known` is too small."""
    past = [each.select("truth", "prediction") for each in known if each.height]
    rows = pl.concat(past).sort("prediction") if past else pl.DataFrame()
    if rows.height < ENOUGH:
        return f"errors of {rows.height} earlier predictions are known; an estimate needs {ENOUGH}"
    return _with_errors(frame, rows["prediction"].to_numpy(), (rows["truth"] - rows["prediction"]).to_numpy(), seed)


def _with_errors(frame: pl.DataFrame, answers: np.ndarray, errors: np.ndarray, seed: int) -> Iterator[pl.DataFrame]:
    bins = max(1, min(BINS, len(answers) // ENOUGH))
    starts = np.linspace(0, len(answers), bins + 1).astype(int)
    sizes = np.diff(starts)
    edges = answers[starts[1:-1]]
    random, bin_of = np.random.default_rng(seed), np.repeat(np.arange(bins), sizes)
    for (part,) in bootstrap.draw([frame], DRAWS, seed):
        anew = errors[starts[bin_of] + (random.random(len(errors)) * sizes[bin_of]).astype(int)]
        place = np.searchsorted(edges, part["prediction"].to_numpy(), side="right")
        drawn = anew[starts[place] + (random.random(part.height) * sizes[place]).astype(int)]
        yield part.with_columns(truth=pl.col("prediction") + drawn)
