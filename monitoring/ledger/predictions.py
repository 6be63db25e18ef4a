"""Every prediction that was made, and every truth that came for one: in a database, each once.

A row of `predictions` says who was answered, when, and by which version. What it was asked with and what it answered lie beside
those of the rows that were written with it, column by column, in one row of `prediction_blocks`; so a week of wide rows is read
in a moment and takes little space.

A truth names its prediction by id, or by entity and time: of a moment, the predictions of that entity in that second; of a day,
those whose features knew that day as their last, or (where rows have no such day) that were made on it, in UTC. Truths and
predictions meet when they are read, so either may come first, and a truth may be about the answers of several versions. Of
several truths the one that was known last counts; the others stay on record.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from itertools import groupby
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from evergreen.monitoring.ledger.records import Estimate
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ProjectError

Variant = Literal["champion", "candidate", "shadow", "batch"]
"""Why a version was asked: it was in charge, on trial with a share of the traffic, on trial unheard, or for a file."""

ALL: tuple[Variant, ...] = ("champion", "candidate", "shadow", "batch")
METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("variant", sa.String(9), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),  # microseconds since 1970, UTC: as here, wherever there is a time
    sa.Column("cutoff", sa.Integer),  # days since 1970
    sa.Column("day", sa.Integer, nullable=False),  # the cutoff, else the day of `at`: what a truth may name
    sa.Column("entity", sa.String(255)),
    sa.Column("block", sa.BigInteger, nullable=False, index=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Index("predictions_by_time", "problem", "at"),
    sa.Index("predictions_by_entity", "problem", "entity"),
)
BLOCKS = sa.Table(
    "prediction_blocks",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("answers", sa.LargeBinary, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
)
TRUTHS = sa.Table(
    "truths",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("id", sa.String(255)),
    sa.Column("entity", sa.String(255)),
    sa.Column("day", sa.Integer),
    sa.Column("second", sa.BigInteger),  # since 1970
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("known_at", sa.BigInteger, nullable=False),
    sa.Index("truths_by_id", "problem", "id"),
    sa.Index("truths_by_entity", "problem", "entity"),
)
COHORTS = sa.Table(
    "prediction_cohorts",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("week", sa.Date, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("predictions", sa.Integer, nullable=False),
    sa.Column("matured", sa.Integer, nullable=False),
    sa.Column("score", sa.Text),
    sa.Column("estimated", sa.Text),
)
AT_ONCE = 500
"""Rows per statement that names each of them: databases bound the values of one."""
BLOCK = 50_000
"""Most rows of one block, and of one transaction."""
SMALL = 64
"""Blocks with fewer rows are kept as JSON: a parquet file of a few wide rows is mostly its own head."""
HEIGHT = "__height"
"""The column of a block that has no other."""
LONGEST = 255
"""Characters of an id or an entity."""
WEEK = 7 * 86_400 * 1_000_000
"""Microseconds."""
TO_MONDAY = 3 * 86_400 * 1_000_000
"""1970 began on a Thursday."""
ATTEMPTS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENT = pl.Datetime("us", "UTC")
"""How times come out."""
STORED = {"id": pl.String, "version": pl.Int64, "variant": pl.String, "at": pl.Int64, "cutoff": pl.Int32, "entity": pl.String}
STORED |= {"block": pl.Int64, "place": pl.Int64}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer."""

    id: str
    problem: str
    version: int
    variant: Variant
    at: datetime
    """UTC."""
    entity: str | None
    cutoff: date | None
    """Last day that its features knew; None for rows of a plain table."""
    features: Mapping[str, Any]
    answer: Mapping[str, Any]
    """`prediction`, and what else the version said, such as `probability_<class>`; of a list `items` and `scores`."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What turned out. It names the prediction by id, or by entity and time."""

    value: Any
    """A number, a class, or (recommendation) the items that were bought."""
    id: str | None = None
    entity: str | None = None
    at: datetime | date | None = None
    """When the prediction was made, or its cutoff. A naive moment is UTC."""
    known_at: datetime | None = None
    """None: now. Of several truths about the same the one known last counts."""


@dataclass(frozen=True, slots=True)
class Refused:
    place: int
    """Which of the truths, counted from 0."""
    reason: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """What became of truths: each is counted once."""

    matched: int
    """New, and its prediction is there."""
    waiting: int
    """New, and its prediction is not there (yet)."""
    repeated: int
    """The same was known before."""
    changed: int
    """Another one was known before."""
    refused: tuple[Refused, ...] = ()
    """Not kept."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions, oldest first, and what is known of their truth."""

    rows: pl.DataFrame
    """id, version, variant, at, cutoff, entity, the columns of the answers (prediction, probability_<class>, …), truth and
    truth_at; the last two are null where no truth is known."""
    features: pl.DataFrame
    """The same rows, a column for each feature; no column where features were not asked for."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The predictions of one version in one week."""

    week: date
    """Its Monday (UTC)."""
    version: int
    predictions: int
    matured: int
    """Of these, whose truth is known."""
    score: Estimate | None = None
    """Realised. None: not asked for."""
    estimated: Estimate | None = None
    """What was to be expected before the truths came."""

    @property
    def off(self) -> float | None:
        """How much higher the score was estimated than it turned out."""
        one, two = self.estimated, self.score
        return None if not one or not two or one.score is None or two.score is None else one.score - two.score


Judge = Callable[[Predicted, datetime], tuple[Estimate, Estimate]]
"""Predictions of one version in one week, and its end -> realised and estimated score. Weeks come in their order."""


class Ledger:
    """The predictions and truths, in tables at the SQLAlchemy `address`; missing tables, or the folder of an SQLite file, are
    made.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "predictions", METADATA)

    def append(self, predictions: Iterable[Prediction]) -> int:
        """Write all of them or none; one whose id is there already changes nothing. Returns how many are new."""
        fresh = 0
        ordered = sorted(predictions, key=lambda each: (each.problem, each.version))
        with self._link() as link:
            for (problem, _), group in groupby(ordered, key=lambda each: (each.problem, each.version)):
                for part in _parts(list(group), BLOCK):
                    rows = [
                        {
                            "problem": problem, "id": each.id, "version": each.version, "variant": each.variant,
                            "at": _micros(each.at), "cutoff": _days(each.cutoff), "day": _day(each.at, each.cutoff),
                            "entity": each.entity, "place": place,
                        }
                        for place, each in enumerate(part)
                    ]  # fmt: skip
                    answers, features = (_columns([getattr(each, of) for each in part]) for of in ("answer", "features"))
                    fresh += self._write(link, rows, _pack_columns(answers, len(part)), _pack_columns(features, len(part)))
        return fresh

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
        answer: Sequence[str] = ("prediction",),
        id: str | None = None,
    ) -> int:
        """Write the rows of `frame`, all of them predictions of one moment; returns how many are new.

        `key`: the column of the entity. `features`, `answer`: the columns to keep. `id`: a column of ids; None: they are made
        of the version, and of the cutoff and the entity, or of `at` and the row itself, so that the same call again changes
        nothing. Rows are written in parts; a call that was killed is made again to write the rest.
        """
        fresh, seen = 0, dict[str, int]()
        told = {"problem": problem, "version": version, "variant": variant, "at": _micros(at)}
        told |= {"cutoff": _days(cutoff), "day": _day(at, cutoff)}
        stem = f"v{version}.{cutoff or f'{_utc(at):%Y%m%dT%H%M%S.%f}'}{'' if variant == 'batch' else f'.{variant}'}."
        for part in frame.iter_slices(BLOCK):
            entities = part[key].cast(pl.String).to_list() if key else [None] * part.height
            if id is not None:
                ids = part[id].cast(pl.String).to_list()
            elif key and cutoff:
                ids = [_short(f"{stem}{name}") for name in entities]
            else:
                ids = [f"{stem}{name}" for name in _hashes(part, [*([key] if key else []), *features, *answer], seen)]
            rows = [
                {**told, "id": name, "entity": entity, "place": place}
                for place, (name, entity) in enumerate(zip(ids, entities, strict=True))
            ]
            with self._link() as link:
                fresh += self._write(link, rows, _pack(part, answer), _pack(part, features))
        return fresh

    def _write(self, link: sa.Connection, rows: list[dict[str, Any]], answers: bytes, features: bytes) -> int:
        """One block and its rows; no block where no row is new."""
        made = link.execute(sa.insert(BLOCKS).values(answers=answers, features=features))
        assert made.inserted_primary_key is not None
        block = made.inserted_primary_key[0]
        fresh = self._insert(link, [{**row, "block": block} for row in rows])
        if not fresh:
            link.execute(sa.delete(BLOCKS).where(BLOCKS.c.number == block))
        return fresh

    def _insert(self, link: sa.Connection, rows: list[dict[str, Any]]) -> int:
        """Write those rows of predictions whose ids are not there; returns how many."""
        rows.sort(key=lambda row: row["id"])  # two writers so never wait for each other
        if self._engine.dialect.name == "sqlite":
            return link.execute(sqlite.insert(PREDICTIONS).on_conflict_do_nothing(), rows).rowcount
        whole = {name: [row[name] for row in rows] for name in PREDICTIONS.c.keys()}  # noqa: SIM118  # no dict
        return link.execute(FROM_ARRAYS, whole).rowcount

    def label(self, problem: str, truths: Sequence[Truth]) -> Labelled:
        """Write the truths, all of them or none; those that cannot be kept are refused one by one."""
        refused, kept = list[Refused](), list[dict[str, Any]]()
        now = datetime.now(UTC)
        for place, truth in enumerate(truths):
            try:
                kept.append({"problem": problem, **_told(truth, now), "stated": truth.known_at is not None})
            except ValueError as error:
                refused.append(Refused(place, str(error)))
        counts: dict[str, int] = dict.fromkeys(("matched", "waiting", "repeated", "changed"), 0)
        with self._link() as link:
            self._alone(link, problem)
            for part in _parts(kept, AT_ONCE):
                self._label(link, problem, part, counts)
        return Labelled(**counts, refused=tuple(refused))

    def _alone(self, link: sa.Connection, problem: str) -> None:
        """Wait until nobody else writes truths: each is judged by those before it."""
        if self._engine.dialect.name == "sqlite":
            link.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            link.execute(sa.select(sa.func.pg_advisory_xact_lock(zlib.crc32(f"truths {problem}".encode()))))

    def _label(self, link: sa.Connection, problem: str, part: list[dict[str, Any]], counts: dict[str, int]) -> None:
        known, there = _known(link, problem, part), _there(link, problem, part)
        fresh = []
        for row in part:
            before = known.get(_key(row))
            if before is not None and before[1] == row["value"]:
                counts["repeated"] += 1
                continue
            if before is not None and not row.pop("stated"):  # the newest word, also where the clock went back
                row["known_at"] = max(row["known_at"], before[0])
            counts["changed" if before else "matched" if there(row) else "waiting"] += 1
            if before is None or row["known_at"] >= before[0]:
                known[_key(row)] = (row["known_at"], row["value"])
            fresh.append({name: row[name] for name in TRUTHS.c.keys() if name != "number"})  # noqa: SIM118  # no dict
        if fresh:
            link.execute(sa.insert(TRUTHS), fresh)

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
    ) -> Predicted:
        """The predictions after `since` (exclusive) up to `until` (inclusive), by `version` or any, asked for as `variants`.

        `known_at`: with the truths that were known by then. `features`: also what they were asked with.
        """
        wanted = _within(problem, since, until, version, variants)
        for _ in range(ATTEMPTS):
            with suppress(_GoneError):  # compacted while it was read: what is left is read again
                return self._read(wanted, features, known_at)
        raise ProjectError(f"{problem}: predictions are being compacted; read them again when that is over")

    def _read(self, wanted: Sequence[sa.ColumnElement[bool]], features: bool, known_at: datetime | None) -> Predicted:
        with self._link() as link:
            asked = sa.select(*(PREDICTIONS.c[name] for name in STORED)).where(*wanted)
            rows = _fetch(link, asked.order_by(PREDICTIONS.c.at, PREDICTIONS.c.block, PREDICTIONS.c.place), STORED)
            block, place = rows["block"].to_numpy(), rows["place"].to_numpy()
            answers = _gather(link, BLOCKS.c.answers, block, place)
            given = _gather(link, BLOCKS.c.features, block, place) if features else pl.DataFrame()
            truths = _truths(link, wanted, known_at)
        rows = rows.with_columns(_moment("at"), pl.col("cutoff").cast(pl.Date))
        rows = rows.hstack(answers.select(pl.exclude([*STORED, "truth", "truth_at"])).get_columns())
        rows = rows.join(truths, on=["block", "place"], how="left", maintain_order="left").drop("block", "place")
        return Predicted(rows, given)

    def cohorts(self, problem: str, judge: Judge | None = None, since: date | None = None) -> list[Cohort]:
        """Per week and version how many predictions there are, of how many the truth is known, and their scores by `judge`.

        `since`: from the week of that day on. Weeks whose predictions were compacted are told as they were kept.
        """
        first = _monday(since) if since else date.min
        kept = {(each.week, each.version): each for each in self._kept(problem) if each.week >= first}
        found = {(each.week, each.version): each for each in self._cohorts(problem, judge, since=since and first)}
        both = {key: _merged(kept[key], found[key]) for key in kept.keys() & found.keys()}
        return [each for _, each in sorted({**kept, **found, **both}.items(), key=lambda pair: pair[0])]

    def _cohorts(
        self, problem: str, judge: Judge | None, *, since: date | None = None, before: date | None = None
    ) -> Iterator[Cohort]:
        """Those of the single predictions, oldest first; `since`, `before`: Mondays."""
        week = (PREDICTIONS.c.at + TO_MONDAY) // WEEK
        asked = sa.select(week, PREDICTIONS.c.version, sa.func.count()).where(PREDICTIONS.c.problem == problem)
        asked = asked.where(PREDICTIONS.c.at >= _micros(_midnight(since))) if since else asked
        asked = asked.where(PREDICTIONS.c.at < _micros(_midnight(before))) if before else asked
        with self._link() as link:
            counts = link.execute(asked.group_by(week, PREDICTIONS.c.version).order_by(week, PREDICTIONS.c.version)).all()
        for number, version, count in counts:
            monday = (EPOCH + timedelta(microseconds=number * WEEK - TO_MONDAY)).date()
            begin, end = (_midnight(monday + timedelta(days=days)) - timedelta(microseconds=1) for days in (0, 7))
            rows = self.read(problem, since=begin, until=end, version=version, variants=ALL, features=False)
            matured = rows.rows.height - rows.rows["truth"].null_count()
            scores = judge(rows, end) if judge else (None, None)
            yield Cohort(monday, version, count, matured, *scores)

    def _kept(self, problem: str) -> list[Cohort]:
        with self._link() as link:
            rows = link.execute(sa.select(COHORTS).where(COHORTS.c.problem == problem)).mappings().all()
        scores = [[each and Estimate.model_validate_json(each) for each in (row["score"], row["estimated"])] for row in rows]
        return [
            Cohort(row["week"], row["version"], row["predictions"], row["matured"], *both)
            for row, both in zip(rows, scores, strict=True)
        ]

    def compact(self, problem: str, before: date, judge: Judge | None = None) -> int:
        """Forget the single predictions of the weeks that ended before the day `before`, and the truths about them; their
        cohorts stay, with their scores by `judge`. Returns how many predictions went.
        """
        monday = _monday(before)
        end, wanted = _micros(_midnight(monday)), PREDICTIONS.c.problem == problem
        old = sa.and_(wanted, PREDICTIONS.c.at < end)
        for _ in range(ATTEMPTS):
            cohorts = list(self._cohorts(problem, judge, before=monday))
            if not cohorts:
                return 0
            with self._link() as link:
                self._alone(link, problem)
                there = link.execute(sa.select(sa.func.count()).select_from(PREDICTIONS).where(old)).scalar_one()
                if there != sum(each.predictions for each in cohorts):
                    continue  # another process compacts too, or late ones came: look again
                self._keep(link, problem, cohorts)
                blocks = sa.select(PREDICTIONS.c.block).where(old).distinct()
                gone = link.execute(blocks).scalars().all()
                link.execute(sa.delete(PREDICTIONS).where(old))
                for part in _parts(list(gone), AT_ONCE):
                    empty = ~sa.exists().where(PREDICTIONS.c.block == BLOCKS.c.number)
                    link.execute(sa.delete(BLOCKS).where(BLOCKS.c.number.in_(part), empty))
                about = [sa.exists().where(wanted, each) for each in ABOUT]
                idle = sa.and_(TRUTHS.c.problem == problem, TRUTHS.c.known_at < end, ~sa.or_(*about))
                link.execute(sa.delete(TRUTHS).where(idle))
                return there
        return 0

    def _keep(self, link: sa.Connection, problem: str, cohorts: Sequence[Cohort]) -> None:
        known = {(each.week, each.version): each for each in self._kept(problem)}
        for each in cohorts:
            key = sa.and_(COHORTS.c.problem == problem, COHORTS.c.week == each.week, COHORTS.c.version == each.version)
            link.execute(sa.delete(COHORTS).where(key))
            whole = _merged(known[each.week, each.version], each) if (each.week, each.version) in known else each
            scores = {
                name: found and found.model_dump_json()
                for name, found in (("score", whole.score), ("estimated", whole.estimated))
            }
            counts = {"predictions": whole.predictions, "matured": whole.matured}
            link.execute(sa.insert(COHORTS).values(problem=problem, week=each.week, version=each.version, **counts, **scores))

    def untold(self, problem: str, until: date, again: date) -> pl.DataFrame:
        """entity and day (the cutoff, else that of the answer) of predictions up to the day `until`, each pair once: those
        without a truth of that day, and all those later than `again`."""
        told = sa.and_(TRUTHS.c.problem == PREDICTIONS.c.problem, ABOUT[1])
        wanted = sa.select(PREDICTIONS.c.entity, PREDICTIONS.c.day).distinct()
        wanted = wanted.where(PREDICTIONS.c.problem == problem, PREDICTIONS.c.entity.is_not(None))
        wanted = wanted.where(PREDICTIONS.c.day <= _days(until))
        wanted = wanted.where(sa.or_(PREDICTIONS.c.day > _days(again), ~sa.exists().where(told)))
        with self._link() as link:
            rows = link.execute(wanted.order_by(PREDICTIONS.c.day, PREDICTIONS.c.entity)).all()
        return pl.DataFrame(rows, schema={"entity": pl.String, "day": pl.Int32}, orient="row").cast({"day": pl.Date})

    def _link(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "predictions")


def _merged(one: Cohort, two: Cohort) -> Cohort:
    """Both parts of a cohort; its scores are those of the larger part."""
    large = one if one.predictions >= two.predictions else two
    return replace(large, predictions=one.predictions + two.predictions, matured=one.matured + two.matured)


class _GoneError(Exception):
    """Rows that were there a moment ago are not."""


def _within(
    problem: str, since: datetime | None, until: datetime | None, version: int | None, variants: Sequence[Variant]
) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = [PREDICTIONS.c.problem == problem, PREDICTIONS.c.variant.in_(variants)]
    wanted += [PREDICTIONS.c.at > _micros(since)] if since else []
    wanted += [PREDICTIONS.c.at <= _micros(until)] if until else []
    wanted += [PREDICTIONS.c.version == version] if version is not None else []
    return wanted


FROM_ARRAYS = sa.text(
    f"INSERT INTO predictions ({', '.join(PREDICTIONS.c.keys())}) SELECT * FROM unnest("
    + ", ".join(f"CAST(:{each.name} AS {each.type.compile(postgresql.dialect())}[])" for each in PREDICTIONS.c)
    + ") ON CONFLICT DO NOTHING"
)
"""PostgreSQL: all rows in one statement, a column in each array."""
ABOUT = (
    TRUTHS.c.id == PREDICTIONS.c.id,
    sa.and_(TRUTHS.c.entity == PREDICTIONS.c.entity, TRUTHS.c.day == PREDICTIONS.c.day),
    sa.and_(TRUTHS.c.entity == PREDICTIONS.c.entity, TRUTHS.c.second == PREDICTIONS.c.at // 1_000_000),
)
"""How a truth finds its predictions."""


def _truths(link: sa.Connection, wanted: Sequence[sa.ColumnElement[bool]], known_at: datetime | None) -> pl.DataFrame:
    """block, place, truth and truth_at of the predictions `wanted` whose truth is known: the one known last."""
    names = {"block": pl.Int64, "place": pl.Int64, "value": pl.String, "known_at": pl.Int64, "number": pl.Int64}
    found = []
    for about in ABOUT:
        asked = sa.select(PREDICTIONS.c.block, PREDICTIONS.c.place, TRUTHS.c.value, TRUTHS.c.known_at, TRUTHS.c.number)
        asked = asked.where(*wanted, TRUTHS.c.problem == PREDICTIONS.c.problem, about)
        found.append(_fetch(link, asked.where(TRUTHS.c.known_at <= _micros(known_at)) if known_at else asked, names))
    frame = pl.concat(found).sort("known_at", "number").unique(["block", "place"], keep="last", maintain_order=True)
    truth = _column("truth", orjson.loads(f"[{','.join(frame['value'])}]"))
    return frame.select("block", "place", truth, _moment("known_at").alias("truth_at"))


def _fetch(link: sa.Connection, asked: sa.Select[Any], schema: Mapping[str, Any]) -> pl.DataFrame:
    """The answer to a query, in parts, since rows take more memory than columns."""
    frames = [pl.DataFrame(schema=schema)]
    for part in link.execute(asked.execution_options(yield_per=BLOCK)).partitions():
        frames.append(pl.DataFrame(dict(zip(schema, zip(*part, strict=True), strict=True)), schema=schema))
    return pl.concat(frames)


def _moment(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _gather(link: sa.Connection, column: sa.Column[Any], block: np.ndarray, place: np.ndarray) -> pl.DataFrame:
    """The rows at `place` of each `block`, from the frames in `column`."""
    numbers, there = np.unique(block), list[int]()
    frames, sizes = list[pl.DataFrame](), list[int]()
    for part in _parts(numbers.tolist(), AT_ONCE):
        asked = sa.select(BLOCKS.c.number, column).where(BLOCKS.c.number.in_(part)).order_by(BLOCKS.c.number)
        for small, rows in groupby(link.execute(asked), key=lambda row: _is_small(row[1])):
            found, packed = zip(*rows, strict=True)
            made = (_unpack_small if small else _unpack)(packed)
            there += found
            frames += made[0]
            sizes += made[1]
    if there != numbers.tolist():
        raise _GoneError
    if not frames:
        return pl.DataFrame()
    starts = np.cumsum([0, *sizes[:-1]])
    every = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    return every[starts[np.searchsorted(numbers, block)] + place].drop(HEIGHT, strict=False)


def _pack(frame: pl.DataFrame, names: Sequence[str]) -> bytes:
    """Columns of a frame in few bytes. Dates become text."""
    if not names:
        return _pack_columns({}, frame.height)
    frame = frame.select(names).with_columns(pl.selectors.temporal().cast(pl.String), pl.selectors.float().fill_nan(None))
    if frame.height < SMALL:
        return _pack_columns(frame.to_dict(as_series=False), frame.height)
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def _pack_columns(columns: Mapping[str, Sequence[Any]], height: int) -> bytes:
    """The same of columns that may hold anything."""
    if height >= SMALL and columns:
        return _pack(_frame(columns, height), list(columns))
    return zlib.compress(orjson.dumps([height, columns], default=_text, option=orjson.OPT_SERIALIZE_NUMPY))


def _is_small(packed: bytes) -> bool:
    return bytes(packed[:4]) != b"PAR1"


def _unpack(packed: Sequence[bytes]) -> tuple[list[pl.DataFrame], list[int]]:
    """Frames of blocks, and how many rows each block has."""
    frames = [pl.read_parquet(BytesIO(each)) for each in packed]
    return frames, [each.height for each in frames]


def _unpack_small(packed: Sequence[bytes]) -> tuple[list[pl.DataFrame], list[int]]:
    """One frame of many small blocks, and how many rows each block has."""
    columns, rows, sizes = dict[str, list[Any]](), 0, list[int]()
    for each in packed:
        height, found = orjson.loads(zlib.decompress(each))
        for name, values in found.items():
            column = columns.setdefault(name, [])
            column += [None] * (rows - len(column)) + values
        rows += height
        sizes.append(height)
    return [_frame({name: column + [None] * (rows - len(column)) for name, column in columns.items()}, rows)], sizes


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Every name in `rows`, in the order of their coming, to its values."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _frame(columns: Mapping[str, Sequence[Any]], height: int) -> pl.DataFrame:
    made = [_column(name, values) for name, values in columns.items()]
    return pl.DataFrame(made) if made else _nothing(height)


def _nothing(height: int) -> pl.DataFrame:
    """A frame keeps no rows without a column."""
    return pl.DataFrame({HEIGHT: pl.Series([None] * height, dtype=pl.Boolean)})


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    """Values as they are where they are all of one sort; numbers as numbers; a mixture as text."""
    sorts = {type(value) for value in values} - {type(None)}
    if not sorts:
        return pl.Series(name, values, dtype=pl.Null)
    if sorts <= {int, float, bool}:
        dtype = pl.Boolean if sorts == {bool} else pl.Float64 if float in sorts else pl.Int64
        try:
            return pl.Series(name, values, dtype=dtype, strict=False)
        except (OverflowError, TypeError):
            return pl.Series(name, values, dtype=pl.Float64, strict=False)
    if len(sorts) == 1 and sorts <= {str, list, date, datetime}:
        try:
            return pl.Series(name, values)
        except (TypeError, pl.exceptions.PolarsError):  # lists of mixtures
            pass
    told = [value if value is None or type(value) is str else _text(value) for value in values]
    return pl.Series(name, told, dtype=pl.String)


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else json.dumps(value, default=str)


def _told(truth: Truth, now: datetime) -> dict[str, Any]:
    """The truth as a row. Raises ValueError, saying why, for one that cannot be kept."""
    if truth.id is None and (truth.entity is None or truth.at is None):
        raise ValueError("names no prediction: it needs an id, or an entity and a time")
    value = truth.value.item() if isinstance(truth.value, np.generic) else truth.value
    if value is None or value != value:
        raise ValueError("has no value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1 and 1.0 are the same truth
    try:
        told = orjson.dumps(value).decode()
    except TypeError:
        raise ValueError(f"value = {value!s:.40}: is neither a number, a text, true or false, nor a list of such") from None
    for name in ("id", "entity"):
        if len(getattr(truth, name) or "") > LONGEST:
            raise ValueError(f"{name} = {getattr(truth, name)[:20]}…: is longer than {LONGEST} characters")
    by_id = truth.id is not None
    moment = isinstance(truth.at, datetime)
    return {
        "id": truth.id,
        "entity": None if by_id else truth.entity,
        "day": None if by_id or moment else _days(truth.at),
        "second": _micros(truth.at) // 1_000_000 if not by_id and isinstance(truth.at, datetime) else None,
        "value": told,
        "known_at": _micros(truth.known_at or now),
    }


def _key(row: Any) -> tuple[Any, ...]:
    """What a truth is about."""
    return row["id"], row["entity"], row["day"], row["second"]


def _known(link: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[int, str]]:
    """What a truth is about -> when the newest word on it was known, and what it said; for those of `part`."""
    found = dict[tuple[Any, ...], tuple[int, str]]()
    for name in ("id", "entity"):
        asked = sa.select(TRUTHS).where(TRUTHS.c.problem == problem, TRUTHS.c[name].in_({row[name] for row in part} - {None}))
        for row in link.execute(asked.order_by(TRUTHS.c.known_at, TRUTHS.c.number)).mappings():
            found[_key(row)] = (row["known_at"], row["value"])
    return found


def _there(link: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], bool]:
    """Whether there is a prediction that a truth of `part` is about."""
    about = set[tuple[Any, ...]]()
    for name in ("id", "entity"):
        asked = sa.select(PREDICTIONS.c.id, PREDICTIONS.c.entity, PREDICTIONS.c.day, PREDICTIONS.c.at).where(
            PREDICTIONS.c.problem == problem, PREDICTIONS.c[name].in_({row[name] for row in part} - {None})
        )
        for id_, entity, day, at in link.execute(asked):
            about |= {(id_, None, None, None), (None, entity, day, None), (None, entity, None, at // 1_000_000)}
    return lambda row: _key(row) in about


def _hashes(part: pl.DataFrame, names: Sequence[str], seen: dict[str, int]) -> Iterator[str]:
    """A name for each row by what it holds; equal rows are told apart by their number, counted in `seen`."""
    for text in part.select(pl.struct(names).struct.json_encode()).to_series():
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}.{seen[name]}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[:200]}…{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"


def _parts(rows: list[Any], size: int) -> Iterator[list[Any]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _micros(moment: datetime) -> int:
    return (_utc(moment) - EPOCH) // timedelta(microseconds=1)


def _days(day: date | None) -> int | None:
    return None if day is None else day.toordinal() - EPOCH.toordinal()


def _day(at: datetime, cutoff: date | None) -> int:
    return (cutoff or _utc(at)).toordinal() - EPOCH.toordinal()
