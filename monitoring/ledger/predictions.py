"""The ledger: every prediction and every label that arrived, each recorded once, in a database.

Predictions of one version and day are stored column by column in blocks (ledger.blocks), so that a window is read without
looking at any other day. Beside them stands an index of ids and entities, by which labels are recognised. Labels are joined
when predictions are read (ledger.label_matching). What grows is kept in order by ledger.upkeep.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any

import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger import blocks, cohorts, label_matching, rejected_labels, scored_cohorts, upkeep
from evergreen.monitoring.ledger.blocks import Blocks
from evergreen.monitoring.ledger.cohorts import Cohort, Week, monday
from evergreen.monitoring.ledger.label_matching import Label, LabelCounts
from evergreen.monitoring.ledger.prediction_rows import VARIANTS, Prediction, Predictions, Variant
from evergreen.monitoring.ledger.rejected_labels import KeptLabel
from evergreen.monitoring.ledger.schema import (
    BLOCK_LABELS,
    BLOCKS,
    DAY_MICROS,
    EPOCH,
    IDS,
    MAX_KEY_LENGTH,
    METADATA,
    ROWS_PER_STATEMENT,
    as_timestamp,
    chunk,
    to_days,
    to_micros,
    to_utc,
)
from evergreen.monitoring.ledger.scored_cohorts import Scorer
from evergreen.monitoring.ledger.writing import write_block
from evergreen.tasks.core import database

BLOCK_ROWS = 50_000
"""Most rows of one block, and of one transaction."""
NEWEST_BLOCKS = 20
"""Blocks whose outputs show what a problem predicts."""
ROWS = ("id", "version", "variant", "at", "cutoff", "entity")


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
        stamped = [(each.problem, each.version, to_micros(each.at), each) for each in predictions]
        stamped.sort(key=lambda row: row[:2])
        with self.connect() as connection:
            for (problem, version, _), group in groupby(stamped, key=lambda row: (row[0], row[1], row[2] // DAY_MICROS)):
                for part in chunk(list(group), BLOCK_ROWS):
                    new += _write_part(connection, problem, version, part)
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
            size = part.height
            head = {
                "id": ids, "variant": [variant] * size, "at": [to_micros(at)] * size, "cutoff": [to_days(cutoff)] * size,
                "entity": entities,
            }  # fmt: skip

            def pack(places: Sequence[int], part: pl.DataFrame = part) -> tuple[bytes, bytes]:
                kept = part if len(places) == part.height else part[list(places)]
                return blocks.pack_frame(kept, outputs), blocks.pack_frame(kept, features)

            with self.connect() as connection:
                new += write_block(connection, problem, version, head, pack)
        return new

    def add_labels(self, problem: str, labels: Sequence[Label]) -> LabelCounts:
        """Write the labels, all of them or none; invalid ones are rejected one by one."""
        with self.connect() as connection:
            return label_matching.add_labels(connection, problem, labels)

    def keep_rejected_labels(self, problem: str, rejected: Sequence[tuple[object, str]]) -> None:
        """Keep labels that broke a rule, each with the rule."""
        with self.connect() as connection:
            rejected_labels.add(connection, problem, rejected)

    def rejected_labels(self, problem: str) -> list[KeptLabel]:
        """The newest rejected labels, oldest first."""
        with self.connect() as connection:
            return rejected_labels.read(connection, problem)

    def made_at(self, problem: str, ids: Iterable[str]) -> dict[str, datetime]:
        """When the predictions with these ids were made, or the end of their cutoff, if that is before; known ids only."""
        columns = IDS.c.id, IDS.c.at, IDS.c.day
        found = dict[str, datetime]()
        with self.connect() as connection:
            for part in chunk(list(dict.fromkeys(ids)), ROWS_PER_STATEMENT):
                query = sa.select(*columns).where(label_matching.is_of(connection, problem), IDS.c.id.in_(part))
                for id_, at, day in connection.execute(query):
                    found[id_] = EPOCH + min(timedelta(microseconds=at), timedelta(days=day + 1))
        return found

    def output_names(self, problem: str) -> list[str]:
        """Names of the outputs of the newest predictions, of all versions among them."""
        query = sa.select(BLOCKS.c.version, BLOCKS.c.outputs).where(BLOCKS.c.problem == problem)
        query = query.order_by(BLOCKS.c.date.desc(), BLOCKS.c.number.desc()).limit(NEWEST_BLOCKS)
        with self.connect() as connection:
            newest = connection.execute(query).all()
        one_each: dict[int, bytes] = {row.version: row.outputs for row in reversed(newest)}
        return blocks.unpack(list(one_each.values()))[0].columns

    def versions(self, problem: str) -> set[int]:
        """The versions that have predictions."""
        with self.connect() as connection:
            return {each.version for each in cohorts.count_weeks(connection, problem)}

    def latest(self, problem: str) -> datetime | None:
        """When the newest prediction was made; None: there is none."""
        newest = sa.select(BLOCKS.c.last).where(BLOCKS.c.problem == problem)
        newest_day = sa.select(sa.func.max(BLOCKS.c.date)).where(BLOCKS.c.problem == problem).scalar_subquery()
        with self.connect() as connection:
            found = connection.execute(newest.where(BLOCKS.c.date == newest_day).order_by(BLOCKS.c.last.desc())).scalar()
        return None if found is None else EPOCH + timedelta(microseconds=found)

    def read(
        self,
        problem: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        version: int | None = None,
        variants: Sequence[Variant] = ("champion", "candidate", "batch"),
        features: bool = True,
        labels: bool = True,
        known_at: datetime | None = None,
        id: str | None = None,
        last: int | None = None,
    ) -> Predictions:
        """Predictions after `since` (exclusive) up to `until` (inclusive), of `version` or any, in the roles `variants`.

        `features`, `labels`: also read those. `known_at`: only labels known by then. `id`: only that prediction. `last`: only
        the newest ones of these, and their labels.
        """
        with self.connect() as connection:
            found = self.find_blocks(connection, problem, since, until, version, variants, features=features)
            found = found if id is None else found.where(pl.col("id") == id)
            found = found if last is None else found.tail(last)
            joined = label_matching.find_labels(connection, problem, found) if labels else label_matching.NO_LABELS
        chosen = label_matching.choose_labels(joined, known_at)
        rows = found.head.select("block", "position", *ROWS)
        rows = rows.with_columns(as_timestamp("at"), pl.col("cutoff").cast(pl.Date))
        rows = rows.hstack(found.outputs.select(pl.exclude([*rows.columns, "label", "label_at"])).get_columns())
        rows = rows.join(chosen, on=["block", "position"], how="left", maintain_order="left").drop("block", "position")
        return Predictions(rows, found.features)

    def find_blocks(
        self,
        connection: sa.Connection,
        problem: str,
        since: datetime | None,
        until: datetime | None,
        version: int | None = None,
        variants: Sequence[Variant] = VARIANTS,
        *,
        outputs: bool = True,
        features: bool = True,
    ) -> Blocks:
        """The predictions that `read` would return, with their places in the ledger."""
        where: list[sa.ColumnElement[bool]] = [BLOCKS.c.problem == problem]
        rows = pl.col("variant").is_in(variants)
        if since:
            begin = to_micros(since)
            where += [BLOCKS.c.date >= begin // DAY_MICROS, BLOCKS.c.last > begin]
            rows &= pl.col("at") > begin
        if until:
            end = to_micros(until)
            where += [BLOCKS.c.date <= end // DAY_MICROS, BLOCKS.c.first <= end]
            rows &= pl.col("at") <= end
        where += [BLOCKS.c.version == version] if version is not None else []
        return blocks.read(connection, where, outputs, features).where(rows)

    def count_labelled(self, problem: str, since: datetime, until: datetime, known_at: datetime) -> int:
        """Predictions after `since` up to `until` with a label known at `known_at`; shadow mode left out."""

        def count(version: int, since: datetime, until: datetime) -> int:
            variants: tuple[Variant, ...] = ("champion", "candidate", "batch")
            with self.connect() as connection:
                found = self.find_blocks(connection, problem, since, until, version, variants, outputs=False, features=False)
                labels = label_matching.find_labels(connection, problem, found)
            return label_matching.choose_labels(labels, known_at).height

        return scored_cohorts.count_labelled(self.connect, count, problem, since, until, known_at)

    def cohorts(
        self, problem: str, scorer: Scorer | None = None, since: date | None = None, most_rows: int | None = None
    ) -> list[Cohort]:
        """Per week and version: the number of predictions, how many have a label, and their scores.

        `scorer`: scores and stores those that changed; None: scores are as they were stored last, None where they never were.
        `most_rows`: changed cohorts of more predictions together stay as they were stored. `since`: from the week of that day
        on. Cohorts of deleted predictions are returned as stored.
        """
        first = monday(since) if since else None
        with self.connect() as connection:
            deleted = [each for each in cohorts.read_deleted(connection, problem) if first is None or each.week >= first]
        found = {(each.week, each.version): each for each in deleted}
        for each in self._refresh(problem, scorer, since=first, most_rows=most_rows):
            key = each.week, each.version
            found[key] = cohorts.merge(found[key], each) if key in found else each
        return [found[key] for key in sorted(found)]

    def _refresh(self, problem: str, scorer: Scorer | None, **limits: Any) -> list[Cohort]:
        @lru_cache(maxsize=scored_cohorts.MAX_EARLIER + 1)
        def read(week: Week) -> Predictions:
            begin, end = week.bounds
            begin -= timedelta(microseconds=1)
            return self.read(problem, since=begin, until=end, version=week.version, variants=VARIANTS, features=False)

        return scored_cohorts.refresh(self.connect, read, problem, scorer, **limits)

    def compact(self, problem: str, before: date, scorer: Scorer | None = None) -> int:
        """Delete the predictions of the weeks that ended before the day `before`, and their labels; their cohorts stay, with
        their scores by `scorer`. Returns the number of deleted predictions.

        Other writers wait at most as long as one small piece of it takes.
        """
        first_kept = monday(before)
        scored = self._refresh(problem, scorer, before=first_kept)
        deleted = sum(upkeep.delete_week(self.connect, problem, each) for each in scored)
        if deleted:
            upkeep.delete_labels(self.connect, problem, first_kept)
            upkeep.give_space_back(self._engine)
        return deleted

    def expired(self, problem: str, before: date) -> tuple[int, int]:
        """The number of predictions that `compact` would delete, and their bytes without ids and labels."""
        sizes = (sa.func.length(part) for part in (BLOCKS.c.head, BLOCKS.c.outputs, BLOCKS.c.features))
        query = sa.select(sa.func.sum(BLOCKS.c.rows), sa.func.sum(sum(sizes, sa.literal(0))))
        with self.connect() as connection:
            where = BLOCKS.c.problem == problem, BLOCKS.c.date < to_days(monday(before))
            rows, size = connection.execute(query.where(*where)).one()
        return int(rows or 0), int(size or 0)

    def tidy(self, problem: str, before: date) -> None:
        """Merge the small blocks of the days before `before`, and pack their labels beside them: then they are read fast."""
        upkeep.tidy(self.connect, problem, before)

    def shrink(self) -> int:
        """SQLite: give the space of deleted rows back; returns the number of bytes. A file of an earlier version is rewritten
        once, and other writers wait so long."""
        return upkeep.shrink(self._engine)

    def unlabelled(self, problem: str, until: date, recheck_after: date, moments: bool = False) -> pl.DataFrame:
        """entity and day (the cutoff, else the day of the prediction) of predictions up to the day `until`, each pair once:
        those without a label, and all those after `recheck_after`.

        `moments`: with `at`, the second of a prediction without a cutoff, and null of one with it; each of these three once.
        """
        last, recheck = to_days(until), to_days(recheck_after)
        second = pl.when(pl.col("cutoff").is_null()).then(pl.col("at") - pl.col("at") % 1_000_000)
        chosen = [pl.col("entity"), pl.col("day"), *([second.alias("at")] if moments else [])]
        frames = [pl.DataFrame(schema={"entity": pl.String, "day": pl.Int32, **({"at": pl.Int64} if moments else {})})]
        with self.connect() as connection:
            open_ = sa.or_(BLOCK_LABELS.c.complete.is_not(True), BLOCKS.c.last_day > recheck)
            for week in cohorts.count_weeks(connection, problem):
                where = [BLOCKS.c.problem == problem, BLOCKS.c.version == week.version, BLOCKS.c.first_day <= last, open_]
                where += [BLOCKS.c.date.between(*week.dates)]
                found = blocks.read(connection, where, outputs=False, features=False)
                found = found.where(pl.col("entity").is_not_null() & (pl.col("day") <= last))
                known = label_matching.find_labels(connection, problem, found).select("block", "position")
                missing = found.head.join(known, on=["block", "position"], how="anti")
                frames += [each.select(chosen) for each in (missing, found.head.filter(pl.col("day") > recheck))]
        asked = pl.concat(frames).unique().sort("day", "entity").cast({"day": pl.Date})
        return asked.with_columns(as_timestamp("at")) if moments else asked

    def connect(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "predictions")


def _write_part(connection: sa.Connection, problem: str, version: int, part: Sequence[tuple[str, int, int, Prediction]]) -> int:
    """One block of predictions that were made on one day."""
    found = [each for _, _, _, each in part]
    head = {
        "id": [each.id for each in found],
        "variant": [each.variant for each in found],
        "at": [at for _, _, at, _ in part],
        "cutoff": [to_days(each.cutoff) for each in found],
        "entity": [each.entity for each in found],
    }

    def pack(places: Sequence[int]) -> tuple[bytes, bytes]:
        outputs = blocks.pack_rows([found[place].outputs for place in places])
        return outputs, blocks.pack_rows([found[place].features for place in places])

    return write_block(connection, problem, version, head, pack)


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
