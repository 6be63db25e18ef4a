"""A prediction on its way into the ledger, and predictions as they come out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import polars as pl

Variant = Literal["champion", "candidate", "shadow", "batch"]
"""The role of the version: champion, candidate in a rollout, candidate in shadow mode (never returned), or batch scoring."""

VARIANTS: tuple[Variant, ...] = ("champion", "candidate", "shadow", "batch")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction."""

    id: str
    problem: str
    version: int
    variant: Variant
    at: datetime
    """UTC."""
    entity: str | None
    cutoff: date | None
    """Last day that its features cover; None for rows of a plain table."""
    features: Mapping[str, Any] | bytes
    """Name -> value, or the JSON of that."""
    outputs: Mapping[str, Any] | bytes
    """As features: `prediction`, and further outputs such as `probability_<class>`; for a list `items` and `scores`."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions, oldest first, with their labels."""

    rows: pl.DataFrame
    """id, version, variant, at, cutoff, entity, the outputs (prediction, probability_<class>, …), label and label_at; the last
    two are null for predictions without a label."""
    features: pl.DataFrame
    """The same rows, one column per feature; no columns where features were not read."""
