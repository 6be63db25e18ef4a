"""What a list is requested by, and the recommended lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, ValidationError, model_validator

from evergreen.tasks.config.params import Fraction, ListRules, Section
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.suggestions import nearest


class Request(Section):
    """A request for lists: users, baskets and rules."""

    users: tuple[Any, ...] = ()
    """Keys of the users; one that is there twice gets two lists, an unknown one what is popular. Empty: one anonymous user."""
    items: tuple[Any, ...] = ()
    """Items in the basket of one user's session; they count as bought and are not recommended."""
    place: int | str | None = None
    """Where: a value of features.place."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Length of a list. null: as in params, pipeline.k."""
    show: Annotated[str, Field(pattern="^(all|rebuy|discover|blend)$")] | None = None
    """all, rebuy, discover or blend. null: as in params; so for all below."""
    blend: Fraction | None = None
    """blend: share of places for new items."""
    diversity: Fraction | None = None
    """0 to 1."""
    explore: Fraction | None = None
    """Share of places for new products."""
    rules: ListRules = ListRules()
    """The rules that are named here take the place of those in params."""
    as_of: date | None = None
    """RecommendedLists as on that day: with histories up to it. null: the newest."""
    explain: bool = True
    """Whether each item comes with its explanation."""

    @model_validator(mode="after")
    def one_basket(self) -> "Request":
        if self.items and len(self.users) > 1:
            raise ValueError("items belong to one user; ask for each user alone")
        return self

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Request":
        """From plain values. Raises DataError, in one line, for a value that breaks a rule."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = (ListRules if key.startswith("rules.") else cls).model_fields
                raise DataError(
                    f"request: {key} = {str(first['input'])[:60]}: unknown request field{nearest(str(first['loc'][-1]), known)}"
                ) from None
            rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
            shown = f"{key} = {str(first['input'])[:60]}: " if key else ""
            raise DataError(f"request: {shown}{rule}") from None


@dataclass(frozen=True)
class Note:
    """Why a list is shorter than asked for. `row`: of the request's users."""

    row: int
    user: Any
    asked: int
    found: int
    of: int
    """Items of the catalogue."""
    costs: Mapping[str, int]
    """Rule -> how many of these it left out, of those that the rules before it allowed."""

    def __str__(self) -> str:
        whom = "an anonymous user" if self.user is None else str(self.user)
        left_out = ", ".join(f"{rule} leaves out {count:,}" for rule, count in self.costs.items() if count)
        return f"{whom}: {self.found:,} of {self.asked:,} asked for; of {self.of:,} items {left_out or 'there are no more'}"


@dataclass(frozen=True, eq=False)
class RecommendedLists:
    """The lists, one entry per user asked for and rank: parallel sequences."""

    row: np.ndarray
    """Row of the requested user."""
    rank: np.ndarray
    """From 1."""
    item: np.ndarray
    score: np.ndarray
    """Higher is better within one list; NaN where no model was asked: promoted and explored items."""
    source: list[str]
    explanation: list[str]
    """Why the item is in the list, in words; empty unless the request says `explain`."""
    notes: tuple[Note, ...]
    as_of: date
    """The last day of the histories that count."""
    learned: date
    """The model's last day of training data; if it is after `as_of`, the model has seen later purchases."""
    propensity: np.ndarray | None = None
    """The chance of each item at its rank (see propensities); None without exploration."""

    def frame(self, users: pl.Series, item: str, explain: bool) -> pl.DataFrame:
        """user (named and typed as `users`, one per list), rank, item, score and source; with exploration also propensity, with
        `explain` also explanation."""
        columns = {"rank": self.rank, item: self.item, "score": self.score, "source": self.source}
        columns |= {} if self.propensity is None else {"propensity": self.propensity}
        found = pl.DataFrame({users.name: users.gather(self.row), **columns}).with_columns(pl.col("score").fill_nan(None))
        return found.with_columns(pl.Series("explanation", self.explanation, pl.String)) if explain else found
