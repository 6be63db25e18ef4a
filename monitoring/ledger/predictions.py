"""The ledger: every prediction and every label that arrived, each recorded once, in a database.

A row of `predictions` holds entity, time and version. Outputs and features lie in one row of `prediction_blocks` for all rows
that were written together (ledger.blocks), so a week of wide rows is read quickly and takes little space. Labels are joined
when predictions are read (ledger.label_matching).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import numpy as np
import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from evergreen.monitoring.ledger import blocks, cohorts, label_matching
from evergreen.monitoring.ledger.cohorts import Cohort, midnight, monday
from evergreen.monitoring.ledger.label_matching import Label, LabelCounts
from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.ledger.schema import (
    BLOCKS,
    EPOCH,
    INSERT_ARRAYS,
    MAX_KEY_LENGTH,
    METADATA,
    PREDICTIONS,
    ROWS_PER_STATEMENT,
    as_timestamp,
    chunk,
    fetch,
    to_days,
    to_micros,
    to_utc,
)
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ProjectError

Variant = Literal["champion", "candidate", "shadow", "batch"]
"""The role of the version: champion, candidate in a rollout, candidate in shadow mode (never returned), or batch scoring."""

VARIANTS: tuple[Variant, ...] = ("champion", "candidate", "shadow", "batch")
BLOCK_ROWS = 50_000
"""Most rows of one block, and of one transaction."""
READ_ATTEMPTS = 5
NEWEST = 200
"""Predictions whose outputs show what a problem predicts."""
SCHEMA = {
    "id": pl.String, "version": pl.Int64, "variant": pl.String, "at": pl.Int64, "cutoff": pl.Int32, "entity": pl.String,
    "block": pl.Int64, "position": pl.Int64,
}  # fmt: skip


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
    features: Mapping[str, Any]
    outputs: Mapping[str, Any]
    """`prediction`, and further outputs such as `probability_<class>`; for a list `items` and `scores`."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions, oldest first, with their labels."""

    rows: pl.DataFrame
    """id, version, variant, at, cutoff, entity, the outputs (prediction, probability_<class>, …), label and label_at; the last
    two are null for predictions without a label."""
    features: pl.DataFrame
    """The same rows, one column per feature; no columns where features were not read."""


Scorer = Callable[[Predictions, datetime], tuple[Estimate, Estimate]]
"""Predictions of one version in one week, and its end -> realised and estimated score. Weeks come in order."""


class Ledger:
    """Predictions and labels in tables at the SQLAlchemy `address`; missing tables, or the folder of an SQLite file, are
    created.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "predictions", METADATA)

    def append(self, predictions: Iterable[Prediction]) -> int:
        """Write all of them or none; a known id changes nothing. Returns the number of new predictions."""
        new = 0
        ordered = sorted(predictions, key=lambda each: (each.problem, each.version))
        with self._connect() as connection:
            for (problem, _), group in groupby(ordered, key=lambda each: (each.problem, each.version)):
                for part in chunk(list(group), BLOCK_ROWS):
                    rows = [
                        {
                            "problem": problem, "id": each.id, "version": each.version, "variant": each.variant,
                            "at": to_micros(each.at), "cutoff": to_days(each.cutoff), "day": _day(each.at, each.cutoff),
                            "entity": each.entity, "position": position,
                        }
                        for position, each in enumerate(part)
                    ]  # fmt: skip
                    outputs = blocks.pack_columns(blocks.to_columns([each.outputs for each in part]), len(part))
                    features = blocks.pack_columns(blocks.to_columns([each.features for each in part]), len(part))
                    new += self._write_block(connection, rows, outputs, features)
        return new

    def append_frame(
        self,
        problem: str,
        version: int,
        frame: pl.DataFrame,
        *,
        at: datetime,
        variant: Variant = "batch",
        key: str | None = None,
        cutoff: date | None = None,
        features: Sequence[str] = (),
        outputs: Sequence[str] = ("prediction",),
        id: str | None = None,
    ) -> int:
        """Write the rows of `frame`, all predicted at the same moment; returns the number of new predictions.

        `key`: the entity's column. `features`, `outputs`: columns to keep. `id`: a column of ids; None: ids are derived from
        the version, and from cutoff and entity, or from `at` and the row, so that the same call again changes nothing. Rows
        are written in parts; after a kill the same call writes the rest.
        """
        new, seen = 0, dict[str, int]()
        common = {"problem": problem, "version": version, "variant": variant, "at": to_micros(at)}
        common |= {"cutoff": to_days(cutoff), "day": _day(at, cutoff)}
        prefix = f"v{version}.{cutoff or f'{to_utc(at):%Y%m%dT%H%M%S.%f}'}{'' if variant == 'batch' else f'.{variant}'}."
        for part in frame.iter_slices(BLOCK_ROWS):
            entities = part[key].cast(pl.String).to_list() if key else [None] * part.height
            if id is not None:
                ids = part[id].cast(pl.String).to_list()
            elif key and cutoff:
                ids = [_shorten(f"{prefix}{name}") for name in entities]
            else:
                columns = [*([key] if key else []), *features, *outputs]
                ids = [f"{prefix}{name}" for name in _hash_rows(part, columns, seen)]
            rows = [
                {**common, "id": name, "entity": entity, "position": position}
                for position, (name, entity) in enumerate(zip(ids, entities, strict=True))
            ]
            with self._connect() as connection:
                packed = blocks.pack_frame(part, outputs), blocks.pack_frame(part, features)
                new += self._write_block(connection, rows, *packed)
        return new

    def _write_block(self, connection: sa.Connection, rows: list[dict[str, Any]], outputs: bytes, features: bytes) -> int:
        """One block and its rows; no block where no row is new."""
        inserted = connection.execute(sa.insert(BLOCKS).values(outputs=outputs, features=features))
        assert inserted.inserted_primary_key is not None
        block = inserted.inserted_primary_key[0]
        new = self._insert(connection, [{**row, "block": block} for row in rows])
        if not new:
            connection.execute(sa.delete(BLOCKS).where(BLOCKS.c.number == block))
        return new

    def _insert(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> int:
        """Write the rows with new ids; returns how many."""
        rows.sort(key=lambda row: row["id"])  # the same order for all writers: no deadlock
        if self._engine.dialect.name == "sqlite":
            return connection.execute(sqlite.insert(PREDICTIONS).on_conflict_do_nothing(), rows).rowcount
        arrays = {name: [row[name] for row in rows] for name in PREDICTIONS.c.keys()}  # noqa: SIM118  # not a dict
        return connection.execute(INSERT_ARRAYS, arrays).rowcount

    def add_labels(self, problem: str, labels: Sequence[Label]) -> LabelCounts:
        """Write the labels, all of them or none; invalid ones are rejected one by one."""
        with self._connect() as connection:
            return label_matching.add_labels(connection, problem, labels)

    def made_at(self, problem: str, ids: Iterable[str]) -> dict[str, datetime]:
        """When the predictions with these ids were made, or the end of their cutoff, if that is before; known ids only."""
        columns = PREDICTIONS.c.id, PREDICTIONS.c.at, PREDICTIONS.c.day
        found = dict[str, datetime]()
        with self._connect() as connection:
            for part in chunk(list(dict.fromkeys(ids)), ROWS_PER_STATEMENT):
                query = sa.select(*columns).where(PREDICTIONS.c.problem == problem, PREDICTIONS.c.id.in_(part))
                for id_, at, day in connection.execute(query):
                    found[id_] = EPOCH + min(timedelta(microseconds=at), timedelta(days=day + 1))
        return found

    def output_names(self, problem: str) -> list[str]:
        """Names of the outputs of the newest predictions, of all versions among them."""
        query = sa.select(PREDICTIONS.c.version, PREDICTIONS.c.block, PREDICTIONS.c.position).where(
            PREDICTIONS.c.problem == problem
        )
        with self._connect() as connection:
            newest = connection.execute(query.order_by(PREDICTIONS.c.at.desc()).limit(NEWEST)).all()
            one_each = {version: (block, position) for version, block, position in newest}
            places = np.array(list(one_each.values()), dtype=np.int64).reshape(-1, 2)
            with suppress(blocks.MissingBlockError):
                return blocks.gather(connection, BLOCKS.c.outputs, places[:, 0], places[:, 1]).columns
        return []

    def read(
        self,
        problem: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        version: int | None = None,
        variants: Sequence[Variant] = ("champion", "candidate", "batch"),
        features: bool = True,
        known_at: datetime | None = None,
    ) -> Predictions:
        """Predictions after `since` (exclusive) up to `until` (inclusive), of `version` or any, in the roles `variants`.

        `known_at`: only labels known by then. `features`: also read the features.
        """
        where = _conditions(problem, since, until, version, variants)
        for _ in range(READ_ATTEMPTS):
            with suppress(blocks.MissingBlockError):  # compacted meanwhile: read what is left
                return self._read(where, features, known_at)
        raise ProjectError(f"{problem}: predictions are being compacted; read them again when that is over")

    def _read(self, where: Sequence[sa.ColumnElement[bool]], features: bool, known_at: datetime | None) -> Predictions:
        with self._connect() as connection:
            query = sa.select(*(PREDICTIONS.c[name] for name in SCHEMA)).where(*where)
            query = query.order_by(PREDICTIONS.c.at, PREDICTIONS.c.block, PREDICTIONS.c.position)
            rows = fetch(connection, query, SCHEMA, BLOCK_ROWS)
            block, position = rows["block"].to_numpy(), rows["position"].to_numpy()
            outputs = blocks.gather(connection, BLOCKS.c.outputs, block, position)
            inputs = blocks.gather(connection, BLOCKS.c.features, block, position) if features else pl.DataFrame()
            labels = label_matching.read_labels(connection, where, known_at, BLOCK_ROWS)
        rows = rows.with_columns(as_timestamp("at"), pl.col("cutoff").cast(pl.Date))
        rows = rows.hstack(outputs.select(pl.exclude([*SCHEMA, "label", "label_at"])).get_columns())
        rows = rows.join(labels, on=["block", "position"], how="left", maintain_order="left").drop("block", "position")
        return Predictions(rows, inputs)

    def cohorts(self, problem: str, scorer: Scorer | None = None, since: date | None = None) -> list[Cohort]:
        """Per week and version: the number of predictions, how many have a label, and their scores by `scorer`.

        `since`: from the week of that day on. Cohorts of deleted predictions are returned as stored.
        """
        first = monday(since) if since else date.min
        with self._connect() as connection:
            kept = [each for each in cohorts.read_stored(connection, problem) if each.week >= first]
        stored = {(each.week, each.version): each for each in kept}
        found = {(each.week, each.version): each for each in self._score_cohorts(problem, scorer, since=since and first)}
        both = {key: cohorts.merge(stored[key], found[key]) for key in stored.keys() & found.keys()}
        return [each for _, each in sorted({**stored, **found, **both}.items(), key=lambda pair: pair[0])]

    def _score_cohorts(
        self, problem: str, scorer: Scorer | None, *, since: date | None = None, before: date | None = None
    ) -> Iterator[Cohort]:
        """Cohorts of the predictions in the ledger, oldest first; `since`, `before`: Mondays."""
        with self._connect() as connection:
            counts = cohorts.count_weeks(connection, problem, since, before)
        for week, version, count in counts:
            begin, end = (midnight(week + timedelta(days=days)) - timedelta(microseconds=1) for days in (0, 7))
            found = self.read(problem, since=begin, until=end, version=version, variants=VARIANTS, features=False)
            matured = found.rows.height - found.rows["label"].null_count()
            scores = scorer(found, end) if scorer else (None, None)
            yield Cohort(week, version, count, matured, *scores)

    def compact(self, problem: str, before: date, scorer: Scorer | None = None) -> int:
        """Delete the predictions of the weeks that ended before the day `before`, and their labels; their cohorts stay, with
        their scores by `scorer`. Returns the number of deleted predictions.
        """
        first_kept = monday(before)
        end = to_micros(midnight(first_kept))
        old = sa.and_(PREDICTIONS.c.problem == problem, PREDICTIONS.c.at < end)
        for _ in range(READ_ATTEMPTS):
            found = list(self._score_cohorts(problem, scorer, before=first_kept))
            if not found:
                return 0
            with self._connect() as connection:
                label_matching.lock_labels(connection, problem)
                count = connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS).where(old)).scalar_one()
                if count != sum(each.predictions for each in found):
                    continue  # another process compacts too, or late predictions arrived: count again
                cohorts.store(connection, problem, found)
                numbers = connection.execute(sa.select(PREDICTIONS.c.block).where(old).distinct()).scalars().all()
                connection.execute(sa.delete(PREDICTIONS).where(old))
                for part in chunk(numbers, ROWS_PER_STATEMENT):
                    empty = ~sa.exists().where(PREDICTIONS.c.block == BLOCKS.c.number)
                    connection.execute(sa.delete(BLOCKS).where(BLOCKS.c.number.in_(part), empty))
                label_matching.delete_unmatched(connection, problem, end)
                return count
        return 0

    def unlabelled(self, problem: str, until: date, recheck_after: date) -> pl.DataFrame:
        """entity and day (the cutoff, else the day of the prediction) of predictions up to the day `until`, each pair once:
        those without a label for that day, and all those after `recheck_after`."""
        with self._connect() as connection:
            rows = connection.execute(label_matching.select_unlabelled(problem, until, recheck_after)).all()
        return pl.DataFrame(rows, schema={"entity": pl.String, "day": pl.Int32}, orient="row").cast({"day": pl.Date})

    def _connect(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "predictions")


def _conditions(
    problem: str, since: datetime | None, until: datetime | None, version: int | None, variants: Sequence[Variant]
) -> list[sa.ColumnElement[bool]]:
    where: list[sa.ColumnElement[bool]] = [PREDICTIONS.c.problem == problem, PREDICTIONS.c.variant.in_(variants)]
    where += [PREDICTIONS.c.at > to_micros(since)] if since else []
    where += [PREDICTIONS.c.at <= to_micros(until)] if until else []
    where += [PREDICTIONS.c.version == version] if version is not None else []
    return where


def _day(at: datetime, cutoff: date | None) -> int:
    """Days since 1970 of the cutoff, else of `at`."""
    day = to_days(cutoff or to_utc(at).date())
    assert day is not None
    return day


def _hash_rows(part: pl.DataFrame, names: Sequence[str], seen: dict[str, int]) -> Iterator[str]:
    """A name for each row from its values; equal rows are numbered, counted in `seen`."""
    for text in part.select(pl.struct(names).struct.json_encode()).to_series():
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}.{seen[name]}"


def _shorten(name: str) -> str:
    if len(name) <= MAX_KEY_LENGTH:
        return name
    return f"{name[:200]}…{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
