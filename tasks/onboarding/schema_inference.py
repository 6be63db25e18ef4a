"""What the columns of a table are, and what can be asked of it: a frame in, roles with their reasons and warnings out.

Facts (missing, distinct, lowest, highest) are of all rows; what needs a closer look is seen on a sample.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal, get_args

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Role
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.onboarding import target_leakage

What = Literal["number", "category", "text", "date", "identifier", "constant", "empty", "unusable"]

SAMPLE_ROWS = 50_000
FEWEST_ROWS = 10
"""Fewer rows cannot be learned from and judged."""
LEVELS = 20
"""More distinct categories than this count as many."""
CLASSES = 100
"""More distinct values than this are no classes."""
WHOLE_CLASSES = 10
"""Whole numbers with more distinct values than this are amounts, not classes."""
TINY_CLASS = 10
"""A class with fewer rows is warned about."""

ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uuid|guid|key)$)|[a-z]I[Dd]$")
ROW_NAME = re.compile(r"(?i)(rownames?|row_?(number|id)?|index|unnamed.*|x|)")
"""Names of columns that number the rows of a file: they say nothing of whom a row is about."""
CODE_NAME = re.compile(r"(?i)(^|[\W_])(zip|zip_?code|post_?code|postal_?code|plz|fips|code|cd|area_?code)$")
TIME_NAME = re.compile(
    r"(?i)(date|time|timestamp|datetime|created|opened|start(ed)?|issued?|sold|ordered|when|day|month|period)"
)
NOT_TIME_NAME = re.compile(r"(?i)(birth|dob|expir|due|until|valid_to|end|clos|resolv|return|deliver|last|next|paid|update)")
POSITIVE = (
    "yes",
    "ja",
    "oui",
    "si",
    "true",
    "1",
    "y",
    "t",
    "positive",
    "bad",
    "churn",
    "churned",
    "default",
    "fraud",
    "failed",
    "fail",
    "event",
)
"""Texts of the class that a question with two answers is usually about."""
FORMATS = {
    "date": (
        *("%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%m/%d/%y"),
        *("%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y"),
    ),
    "datetime": (
        *("%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%y %H:%M", "%m/%d/%Y %I:%M:%S %p"),
        *("%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M"),
    ),
}
"""How dates are commonly written, beside what ingest reads on its own; tried in this order."""


@dataclass(frozen=True)
class Asked:
    """What the person said about the table; None and empty: nothing."""

    target: str | None = None
    kind: KindName | None = None
    time: str | None = None
    entity: str | None = None
    drop: tuple[str, ...] = ()
    user: str | None = None
    item: str | None = None
    basket: str | None = None
    order: str | None = None

    def columns(self) -> dict[str, str]:
        """Option -> the column that it names."""
        named = {name: getattr(self, name) for name in ("target", "time", "entity", "user", "item", "basket", "order")}
        return {name: column for name, column in named.items() if column is not None}


def as_kind(name: str | None) -> KindName | None:
    """Raises ParamsError for a name that is no kind of problem."""
    kinds: tuple[KindName, ...] = get_args(KindName)
    if name is not None and name not in kinds:
        raise ParamsError(f"--kind {name}: no such kind{nearest(name, kinds)}")
    return next((each for each in kinds if each == name), None)


@dataclass(frozen=True)
class Column:
    name: str
    what: What
    seen: str
    """What it holds, in few words."""
    feature: Role | None = None
    """What it is to the model. None: no feature."""
    why: str = ""
    """Why it is no feature, or what speaks for its role."""
    type: Literal["number", "date", "datetime"] | None = None
    """What ingest must make of its text."""
    format: str | None = None
    """How its dates are written, where ingest would not know."""
    missing: int = 0
    distinct: int = 0
    low: Any = None
    high: Any = None
    levels: tuple[str, ...] = ()
    """The values of a category with few."""
    whole: bool = False
    """Numbers without fractions."""


@dataclass(frozen=True)
class Inferred:
    kind: KindName
    rows: int
    columns: tuple[Column, ...]
    target: str | None = None
    positive_class: str | None = None
    entity: str | None = None
    time: str | None = None
    duplicates: int = 0
    """Rows that repeat an earlier one in every column."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Of a recommendation: column -> user, item, basket or order."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """kind, entity, time, positive_class -> what speaks for it."""
    warnings: tuple[str, ...] = ()

    def column(self, name: str | None) -> Column | None:
        return next((each for each in self.columns if each.name == name), None)

    @property
    def features(self) -> dict[str, Role]:
        return {each.name: each.feature for each in self.columns if each.feature}


def infer(table: pl.LazyFrame, asked: Asked, today: date) -> Inferred:
    """What `table` (one row per case, or per purchase) holds and which kind of problem it is, as far as `asked` leaves it open.

    Raises ParamsError for a column that is not there, DataError where nothing can be learned.
    """
    schema = table.collect_schema()
    for option, name in [*asked.columns().items(), *(("drop", each) for each in asked.drop)]:
        if name not in schema:
            raise ParamsError(f"--{option} {name}: the table has no such column{nearest(name, schema.names())}")
    rows = table.select(pl.len()).collect().item()
    if rows < FEWEST_ROWS:
        raise DataError(
            f"the table has {rows} {'row' if rows == 1 else 'rows'}; at least {FEWEST_ROWS} are needed to learn and to judge"
        )
    sample = _sample(table, rows)
    facts = _facts(table, schema)
    columns = {
        name: _column(table, sample, name, held, rows, facts.get(name))
        for name, held in schema.items()
        if name not in asked.drop
    }
    sample = _converted(sample, columns)
    if asked.user or asked.item or asked.kind == "recommendation":
        return _purchases(asked, columns, rows)
    return _cases(table, sample, asked, columns, rows, today)


def _sample(table: pl.LazyFrame, rows: int) -> pl.DataFrame:
    """Up to SAMPLE_ROWS rows, the same ones each time, in their order."""
    if rows <= SAMPLE_ROWS:
        return table.collect()
    chosen = pl.col("__row").hash(0) % rows < SAMPLE_ROWS
    return table.with_row_index("__row").filter(chosen).drop("__row").collect(engine="streaming")


# One column


def _facts(table: pl.LazyFrame, schema: pl.Schema) -> dict[str, tuple[int, int, Any, Any]]:
    """Column -> missing, distinct (of fractions about), lowest, highest, of every row in one pass. Without unusable columns."""
    asked = []
    for place, (name, kind) in enumerate(schema.items()):
        if _unusable(kind):
            continue
        column = pl.col(name).cast(pl.String) if _is_text(kind) else pl.col(name)
        distinct = column.drop_nulls().approx_n_unique() if kind.is_float() else column.drop_nulls().n_unique()
        facts = {"missing": column.null_count(), "distinct": distinct, "low": column.min(), "high": column.max()}
        asked += [fact.alias(f"{place} {what}") for what, fact in facts.items()]
    row = table.select(asked).collect(engine="streaming").row(0, named=True) if asked else {}
    return {
        name: tuple(row[f"{place} {what}"] for what in ("missing", "distinct", "low", "high"))
        for place, name in enumerate(schema)
        if f"{place} missing" in row
    }


def _unusable(kind: pl.DataType) -> str:
    """Why no model takes a column of that type; empty where one may."""
    if isinstance(kind, pl.List | pl.Array | pl.Struct | pl.Object):
        return "holds lists, which no model takes"
    return f"holds {kind}, which no model takes" if kind in (pl.Binary, pl.Time, pl.Duration) else ""


def _is_text(kind: pl.DataType) -> bool:
    return not (kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean)


def _column(
    table: pl.LazyFrame, sample: pl.DataFrame, name: str, kind: pl.DataType, rows: int, facts: tuple[int, int, Any, Any] | None
) -> Column:
    if facts is None:
        return Column(name, "unusable", str(kind), why=_unusable(kind))
    missing, distinct, low, high = facts
    if missing == rows:
        return Column(name, "empty", "no value", why="every value is missing", missing=missing)
    if low == high and not missing:
        return Column(name, "constant", f"always {low}", why="has one value", distinct=1, low=low, high=high)
    found = Column(name, "number", "", missing=missing, distinct=1 if low == high else distinct, low=low, high=high)
    if kind.is_temporal():
        return replace(found, what="date", feature="date", seen=f"{low} to {high}")
    return _words(table, sample, found, rows) if _is_text(kind) else _number(sample, found, rows, kind)


def _number(sample: pl.DataFrame, found: Column, rows: int, kind: pl.DataType) -> Column:
    """Amounts, and whole numbers that only name."""
    if kind == pl.Boolean:
        return replace(found, feature="number", seen="true or false", whole=True)
    whole = kind.is_integer()
    seen = f"{_short(found.low)} to {_short(found.high)}"
    found = replace(found, feature="number", seen=seen, whole=whole)
    if not whole or found.missing:
        return found
    unique = found.distinct == rows
    counted = unique and found.high - found.low + 1 == rows and sample[found.name].is_sorted()
    if (counted and rows > LEVELS) or (unique and ID_NAME.search(found.name)):
        why = "numbers the rows" if counted else "another one in every row"
        return replace(found, what="identifier", feature=None, seen=seen, why=why)
    if CODE_NAME.search(found.name) and found.distinct > 2:
        return replace(
            found, what="category", feature="category", seen=f"{found.distinct:,} codes", why="numbers that only name"
        )
    return found


def _words(table: pl.LazyFrame, sample: pl.DataFrame, found: Column, rows: int) -> Column:
    """Numbers and dates written as text, categories, texts, identifiers."""
    name, present = found.name, rows - found.missing
    values = sample[name].cast(pl.String).drop_nulls()
    if converted := _written(table, values, name):
        kind, form, low, high = converted
        role: Role = "number" if kind == "number" else "date"
        return replace(
            found, what=role, feature=role, type=kind, format=form, low=low, high=high, seen=f"{_short(low)} to {_short(high)}",
            why="written as text",
        )  # fmt: skip
    words = values.str.count_matches(r"\S+").mean() or 0
    length = values.str.len_chars().mean() or 0
    found = replace(found, low=None, high=None)
    many = found.distinct > LEVELS
    if many and found.distinct > 0.5 * present and (_float(words) >= 2.5 or _float(length) > 40):
        return replace(found, what="text", feature="text", seen=f"{_float(words):.0f} words on average")
    if many and _float(words) >= 5 and found.distinct > 0.05 * present:
        return replace(found, what="text", feature="text", seen=f"{_float(words):.0f} words on average")
    if many and found.distinct > 0.95 * present:
        return replace(found, what="identifier", seen=f"{found.distinct:,} distinct", why="another one in nearly every row")
    seen = f"{found.distinct:,} levels" + (", many" if many else "")
    text = pl.col(name).cast(pl.String)
    levels = () if many else tuple(table.select(text.drop_nulls().unique().sort()).collect()[name].to_list())
    return replace(found, what="category", feature="category", seen=seen, levels=levels)


def _written(table: pl.LazyFrame, values: pl.Series, name: str) -> tuple[Any, str | None, Any, Any] | None:
    """What all values of a column of text can be read as: type, format, lowest, highest. None: words."""
    stripped = values.str.strip_chars()
    tries: list[tuple[Any, str | None, pl.Expr]] = []
    text = pl.col(name).cast(pl.String).str.strip_chars()
    if stripped.cast(pl.Float64, strict=False).null_count() == 0:
        tries.append(("number", None, text.cast(pl.Float64, strict=False)))
    elif stripped.str.contains(r"\d").all() and (stripped.str.len_chars().max() or 0) <= 30:  # type: ignore[operator]
        tries += [("date", form, text.str.to_date(form, strict=False)) for form in FORMATS["date"]]
        tries += [("datetime", form, text.str.to_datetime(form, time_unit="us", strict=False)) for form in FORMATS["datetime"]]
    for kind, form, made in tries:
        if values.to_frame(name).select(made.null_count()).item():
            continue
        facts = table.select(
            lost=(pl.col(name).is_not_null() & made.is_null()).sum(), low=made.min(), high=made.max()
        ).collect()
        lost, low, high = facts.row(0)
        if not lost:
            return kind, form, low, high
    return None


def _converted(sample: pl.DataFrame, columns: Mapping[str, Column]) -> pl.DataFrame:
    """The sample as ingest will read the table."""
    made = []
    for each in columns.values():
        text = pl.col(each.name).cast(pl.String).str.strip_chars()
        if each.type == "number":
            made.append(text.cast(pl.Float64).alias(each.name))
        elif each.type == "date":
            made.append(text.str.to_date(each.format).alias(each.name))
        elif each.type == "datetime":
            made.append(text.str.to_datetime(each.format, time_unit="us").alias(each.name))
    return sample.select(list(columns)).with_columns(made)


def _float(value: Any) -> float:
    return float(value)


def _short(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


# Purchases


def _purchases(asked: Asked, columns: dict[str, Column], rows: int) -> Inferred:
    """A recommendation problem: who bought what, when."""
    if not asked.user or not asked.item:
        raise ParamsError("recommendation needs --user COL and --item COL")
    time = asked.time
    if time is None and asked.order is None:
        dates = [each.name for each in columns.values() if each.what == "date"]
        if len(dates) != 1:
            raise ParamsError(
                f"recommendation needs --time COL (when it was bought), or --order COL (a number of the order); "
                f"columns of dates are {', '.join(dates) or 'none'}"
            )
        time = dates[0]
    if time is not None and columns[time].what != "date":
        raise ParamsError(f"--time {time}: holds no dates or times ({columns[time].seen}); name another column, or --order")
    warnings = [
        f"{name}: {columns[name].missing:,} rows say nothing; they are left out"
        for name in (asked.user, asked.item)
        if columns[name].missing
    ]
    if asked.basket is None:
        warnings.append(f"no --basket: what one {asked.user} bought at one {time or asked.order} counts as one basket")
    for name in (asked.user, asked.item):
        if columns[name].distinct < FEWEST_ROWS:
            raise DataError(f"{name}: {columns[name].distinct} distinct; at least {FEWEST_ROWS} are needed for recommendations")
    reasons = {"kind": "a user and an item are named"}
    named = ((getattr(asked, part), part) for part in ("user", "item", "basket", "order"))
    parts = {column: part for column, part in named if column}
    kept = tuple(each if each.name in (*parts, time) else replace(each, feature=None) for each in columns.values())
    return Inferred("recommendation", rows, kept, time=time, parts=parts, reasons=reasons, warnings=tuple(warnings))


# Cases


def _cases(
    table: pl.LazyFrame, sample: pl.DataFrame, asked: Asked, columns: dict[str, Column], rows: int, today: date
) -> Inferred:
    """Classification, regression or clustering: one row per case."""
    reasons: dict[str, str] = {}
    warnings: list[str] = []
    kind = _kind(table, asked, columns, rows, reasons, warnings)
    positive = _positive(table, asked.target, kind, reasons)
    entity = _entity(asked, columns, rows, reasons, warnings)
    time = _time(sample, asked, columns, entity, today, reasons, warnings)
    for name in (asked.target, entity):
        if name is not None:
            columns[name] = replace(columns[name], feature=None, why="")
    found = Inferred(kind, rows, tuple(columns.values()), asked.target, positive, entity, time)
    left_out = target_leakage.find_leaks(sample, found.features, asked.target, kind, time) if asked.target else []
    for leak in left_out:
        warnings.append(leak.warning)
        for name in leak.columns if leak.certain else ():
            columns[name] = replace(columns[name], feature=None, why=leak.why)
    copies = _duplicates(table, sample, asked.target, rows, warnings)
    _require_features(asked, columns)
    return replace(
        found, columns=tuple(columns.values()), duplicates=copies, reasons=reasons, warnings=tuple(dict.fromkeys(warnings))
    )


def _kind(
    table: pl.LazyFrame, asked: Asked, columns: Mapping[str, Column], rows: int, reasons: dict[str, str], warnings: list[str]
) -> KindName:
    """The kind of problem. Raises DataError for a target that cannot be predicted."""
    if asked.target is None:
        if asked.kind and problems.predictions(asked.kind).target:
            raise ParamsError(f"{asked.kind} needs --target COL: what is to be predicted")
        reasons["kind"] = "no target is named"
        return "clustering"
    if asked.target in asked.drop:
        raise ParamsError(f"--drop {asked.target}: is the target too")
    if asked.kind and not problems.predictions(asked.kind).target:
        raise ParamsError(f"{asked.kind} predicts nothing; leave --target out, or name another kind")
    target = columns[asked.target]
    where = f"--target {target.name}"
    if target.what == "unusable":
        raise DataError(f"{where}: {target.why}; name a column of numbers or words")
    if target.what == "empty":
        raise DataError(f"{where}: every value is missing; nothing can be learned")
    if target.what == "constant" or target.distinct == 1:
        raise DataError(f"{where}: has one value ({target.seen}); there is nothing to tell apart")
    if target.what == "date":
        raise DataError(f"{where}: is a date; predict a number in its place, such as the days until it, as a column of its own")
    if rows - target.missing < FEWEST_ROWS:
        raise DataError(
            f"{where}: {rows - target.missing} rows have one; at least {FEWEST_ROWS} are needed to learn and to judge"
        )
    if target.missing:
        warnings.append(f"{target.name}: {target.missing:,} of {rows:,} rows lack the target; they teach nothing")
    kind = asked.kind or _kind_of(target, table, reasons, warnings)
    if asked.kind:
        reasons["kind"] = "named"
    words = target.what in ("category", "text", "identifier") and target.low is None
    holds = problems.predictions(kind).target
    if holds == "number" and words:
        raise DataError(f"{where}: holds words ({target.seen}); regression predicts numbers. Say --kind classification")
    if holds == "class":
        _check_classes(table, target, rows, warnings)
    return kind


def _kind_of(target: Column, table: pl.LazyFrame, reasons: dict[str, str], warnings: list[str]) -> KindName:
    if target.low is None:
        reasons["kind"] = f"{target.name} holds {target.distinct:,} words"
        return "classification"
    if target.distinct == 2:
        reasons["kind"] = f"{target.name} has two values"
        return "classification"
    if target.what == "category" or (target.whole and target.distinct <= WHOLE_CLASSES):
        reasons["kind"] = f"{target.name} has {target.distinct} whole values"
        warnings.append(
            f"{target.name}: whole numbers with {target.distinct} values are taken for classes; if they are amounts or counts, "
            "say --kind regression"
        )
        return "classification"
    reasons["kind"] = f"{target.name} is a number with {'about ' if not target.whole else ''}{target.distinct:,} values"
    return "regression"


def _check_classes(table: pl.LazyFrame, target: Column, rows: int, warnings: list[str]) -> None:
    counts = _counts(table, target.name)
    if len(counts) > CLASSES:
        raise DataError(
            f"--target {target.name}: {len(counts):,} distinct values in {rows:,} rows are no classes; "
            f"{'say --kind regression' if target.low is not None else 'name another column'}"
        )
    for value, count in counts.items():
        if count == 1:
            warnings.append(f"{target.name}: one row alone is {value}; it cannot be learned and judged at once")
        elif count < TINY_CLASS:
            warnings.append(f"{target.name}: {count} rows are {value}; too few to say how well that class is told")


def _counts(table: pl.LazyFrame, name: str) -> dict[str, int]:
    """Class -> rows, the most frequent first."""
    text = pl.col(name).cast(pl.String)
    counted = table.select(text).drop_nulls().group_by(name).len().sort("len", name, descending=[True, False]).collect()
    return dict(counted.iter_rows())


def _positive(table: pl.LazyFrame, target: str | None, kind: KindName, reasons: dict[str, str]) -> str | None:
    """Of two classes, the one that is asked about: by its name, else the rarer one."""
    if target is None or problems.predictions(kind).target != "class":
        return None
    counts = _counts(table, target)
    if len(counts) != 2:
        return None
    usual = [name for name in counts if name.strip().lower() in POSITIVE]
    reasons["positive_class"] = "by its name" if len(usual) == 1 else "the rarer one"
    return usual[0] if len(usual) == 1 else list(counts)[-1]


def _entity(asked: Asked, columns: dict[str, Column], rows: int, reasons: dict[str, str], warnings: list[str]) -> str | None:
    """Whom a row is about: a column named like an identifier. One that repeats is preferred: its rows belong together."""
    if asked.entity:
        if asked.entity == asked.target:
            raise ParamsError(f"--entity {asked.entity}: is the target too")
        if missing := columns[asked.entity].missing:
            raise DataError(
                f"--entity {asked.entity}: {missing:,} rows do not say whom they are about; mend them or leave it out"
            )
        reasons["entity"] = "named"
        return asked.entity
    free = (each for each in columns.values() if each.name not in (asked.target, asked.time) and not each.missing)
    able = (each for each in free if each.what in ("identifier", "number", "category", "text"))
    whole = (each for each in able if each.whole or each.low is None)
    named = [each for each in whole if ID_NAME.search(each.name) and not ROW_NAME.fullmatch(each.name)]
    again = [each for each in named if FEWEST_ROWS <= each.distinct <= 0.9 * rows and each.distinct > 0.01 * rows]
    chosen = max(again, key=lambda each: each.distinct, default=None) or next(
        (each for each in named if each.distinct == rows), None
    )
    for each in named:
        if each is not chosen and each.what != "identifier":
            columns[each.name] = replace(each, what="category", feature="category", why="numbers that only name")
    if chosen is None:
        return None
    if chosen.distinct < rows:
        reasons["entity"] = f"its name, and {rows / chosen.distinct:.1f} rows each"
    else:
        reasons["entity"] = "its name, and another one in every row"
    columns[chosen.name] = replace(chosen, what="identifier")
    return chosen.name


def _time(
    sample: pl.DataFrame, asked: Asked, columns: Mapping[str, Column], entity: str | None, today: date,
    reasons: dict[str, str], warnings: list[str],
) -> str | None:  # fmt: skip
    """The column that orders the rows: one of dates, by its name or because the file is sorted by it."""
    if asked.time:
        if columns[asked.time].what != "date":
            raise ParamsError(f"--time {asked.time}: holds no dates or times ({columns[asked.time].seen}); name another column")
        if missing := columns[asked.time].missing:
            raise DataError(f"--time {asked.time}: {missing:,} rows have none; mend them, or leave --time out")
        reasons["time"] = "named"
        return asked.time
    dates = [each for each in columns.values() if each.what == "date" and each.name not in (asked.target, entity)]
    known = [each for each in dates if not each.missing and _day(each.high) <= today]
    able = [each for each in known if each.distinct >= 3 * FEWEST_ROWS and not NOT_TIME_NAME.search(each.name)]
    ordered = [each for each in able if sample[each.name].is_sorted() or sample[each.name].is_sorted(descending=True)]
    named = [each for each in able if TIME_NAME.search(each.name)]
    for found, reason in ((ordered, "the rows are sorted by it"), (named, "its name")):
        if len(found) == 1:
            reasons["time"] = reason
            return found[0].name
    if able:
        names = ", ".join(each.name for each in able)
        warnings.append(
            f"{names}: dates, none of them clearly the time of the row; if one is, say --time COL: then the newest rows judge"
        )
    return None


def _day(value: Any) -> date:
    return value.date() if hasattr(value, "date") else value


def _duplicates(table: pl.LazyFrame, sample: pl.DataFrame, target: str | None, rows: int, warnings: list[str]) -> int:
    """How many rows repeat an earlier one, also those that differ in the target alone."""
    usable = [name for name, kind in sample.schema.items() if not _unusable(kind)]
    copies = rows - table.select(pl.struct(usable).hash().n_unique()).collect().item()
    if copies:
        warnings.append(f"{copies:,} {'row repeats' if copies == 1 else 'rows repeat'} an earlier one in every column")
    features = [name for name in usable if name != target]
    if target is not None and features:
        unlike = (
            sample.group_by(features)
            .agg(kinds=pl.col(target).drop_nulls().n_unique(), rows=pl.len())
            .filter(pl.col("kinds") > 1)
        )
        if unlike.height and (count := int(unlike["rows"].sum())) > 1:
            warnings.append(
                f"{count:,} of {sample.height:,} rows agree with another row in all but {target}: no model can tell them apart"
            )
    return copies


def _require_features(asked: Asked, columns: Mapping[str, Column]) -> None:
    if any(each.feature for each in columns.values()):
        return
    others = [each for each in columns.values() if each.name not in asked.columns().values()]
    said = "; ".join(f"{each.name} {each.why or each.seen}" for each in others[:5]) or "there is no other column"
    raise DataError(f"no column is left to learn from: {said}. Give a table with columns that vary and are known in time")


def shown(found: Inferred) -> Iterable[tuple[str, str, str, str]]:
    """One line per column: name, what it is, what it holds, why it is (no) feature."""
    for each in found.columns:
        parts = [part for part in ("target", "entity", "time") if getattr(found, part) == each.name]
        parts += [found.parts[each.name]] if each.name in found.parts else []
        missing = f", {each.missing / found.rows:.0%} missing" if each.missing else ""
        left_out = "left out: " if each.why and not each.feature and not parts else ""
        what = [each.what] if not parts or (each.feature and not found.parts) else []
        yield each.name, " ".join([*parts, *what]), f"{each.seen}{missing}", left_out + each.why
