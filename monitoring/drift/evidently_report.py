"""The report of a window for people, by Evidently. The one home of evidently; nothing is decided here."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import kstwobign

os.environ.setdefault("DO_NOT_TRACK", "1")  # Evidently reads it while it is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

from evergreen.monitoring.drift import histograms
from evergreen.monitoring.drift.histograms import Form
from evergreen.monitoring.ledger.records import Change
from evergreen.tasks.core.paths import writing

ROWS = 5_000
"""Rows of the reference and of the window that the report is drawn from, at random."""
COLUMNS = 60
"""Columns that the report shows at most, those that changed most; each has a drawing of its own."""


def write(
    reference: pl.DataFrame,
    window: pl.DataFrame,
    forms: Mapping[str, Form],
    changes: Mapping[str, Change],
    path: Path,
    seed: int,
) -> Path:
    """Write the report of the columns in `forms` as one file of HTML that needs nothing beside it (4 MB), whole or not at all.

    Statistic and threshold of a column are those of its change in `changes`. Columns without a value on either side, and those
    that one side lacks, are left out, since Evidently refuses them. Returns `path`.
    """
    sides = [frame.sample(min(frame.height, ROWS), seed=seed) for frame in (reference, window)]
    shown = [name for name in changes if name in forms and all(_has_values(frame, name, forms[name]) for frame in sides)][
        :COLUMNS
    ]
    with writing(path) as scratch:
        if shown:
            definition = DataDefinition(
                numerical_columns=[name for name in shown if forms[name] == "number"],
                categorical_columns=[name for name in shown if forms[name] == "category"],
            )
            was, now = (Dataset.from_pandas(_plain(frame, shown, forms), data_definition=definition) for frame in sides)
            rows = [frame.height for frame in sides]
            methods = {name: changes[name].statistic for name in shown}
            thresholds = {name: _threshold(changes[name], rows) for name in shown}
            preset = DataDriftPreset(columns=shown, per_column_method=dict(methods), per_column_threshold=thresholds)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                Report([preset]).run(now, was).save_html(str(scratch))
        else:
            scratch.write_text("<!doctype html><title>Drift</title><p>No column has values on both sides.</p>\n")
    return path


def _threshold(change: Change, rows: list[int]) -> float:
    """Evidently's `ks` is a p-value, for so many rows; its other statistics are distances as ours are."""
    limit = change.threshold or 0.0
    if change.statistic != "ks":
        return limit
    return float(kstwobign.sf(limit * np.sqrt(rows[0] * rows[1] / sum(rows))))


def _has_values(frame: pl.DataFrame, name: str, form: Form) -> bool:
    if name not in frame.columns or not frame.height:
        return False
    values = frame[name]
    return bool(np.isfinite(histograms.numbers(values)[0]).any()) if form == "number" else values.null_count() < len(values)


def _plain(frame: pl.DataFrame, names: list[str], forms: Mapping[str, Form]) -> Any:
    """As pandas."""
    columns = {
        name: pl.Series(histograms.numbers(frame[name])[0]) if forms[name] == "number" else histograms.texts(frame[name])
        for name in names
    }
    return pl.DataFrame(columns).to_pandas()
