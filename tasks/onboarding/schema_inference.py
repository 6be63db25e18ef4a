"""Schema inference for `evergreen init`: kind of problem, roles of the columns, their reasons, and warnings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Role
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.onboarding import target_leakage
from evergreen.tasks.onboarding.column_inference import (
    ROW_NUMBER,
    Column,
    infer_column,
    summarise,
    unusable_reason,
)
from evergreen.tasks.onboarding.entity_and_time import ROW_NAME, choose_roles
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.shop_shape import ShopShape, count_windows, find_shape
from evergreen.tasks.problems.base import NOT_SCORED
from evergreen.tasks.problems.classification.scores import PREFIX
from evergreen.tasks.problems.tabular.row_draws import distinguishing

SAMPLE_ROWS = 50_000
FEWEST_ROWS = 10
"""Lowest number of rows for training and evaluation."""
CLASSES = 100
"""Largest number of classes."""
WHOLE_CLASSES = 10
"""Integers with more distinct values are amounts, not classes."""
TINY_CLASS = 10
"""A class with fewer rows gets a warning."""

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
"""Common names of the positive class."""
NEGATIVE_OF_1 = ("0", "-1")
"""1 is the positive class beside one of these; of 1 and 2, for example, the rarer one is."""


@dataclass(frozen=True)
class InferredSchema:
    kind: KindName
    rows: int
    columns: tuple[Column, ...]
    target: str | None = None
    positive_class: str | None = None
    entity: str | None = None
    time: str | None = None
    test_key: tuple[str, ...] = ()
    """Columns that draw the test rows, where there is neither entity nor time."""
    duplicates: int = 0
    """Rows that are equal to an earlier one in every column."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Recommendation: column -> user, item, basket or order."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """kind, entity, time, positive_class -> why it was chosen."""
    costs: Mapping[str, str] = field(default_factory=dict)
    """entity, time -> what the choice means for validation and features, and the option that says otherwise."""
    warnings: tuple[str, ...] = ()
    shape: ShopShape | None = None
    """Recommendation: what the purchases say about the shop; None for orders without dates."""
    windows: int = 3
    """evaluate.windows of the template."""

    def column(self, name: str | None) -> Column | None:
        return next((each for each in self.columns if each.name == name), None)

    @property
    def features(self) -> dict[str, Role]:
        return {each.name: each.role for each in self.columns if each.role}


def infer_schema(table: pl.LazyFrame, asked: InitOptions, today: date) -> InferredSchema:
    """Infer what `asked` leaves open. `table`: one row per case, or per purchase.

    Raises ParamsError for an unknown column, DataError if no model can be trained on the table.
    """
    schema = table.collect_schema()
    asked = asked.without(schema.names())
    for option, name in [*asked.columns().items(), *(("drop", each) for each in asked.drop)]:
        if name not in schema:
            raise ParamsError(f"--{option} {name}: the table has no such column{nearest(name, schema.names())}")
    rows = table.select(pl.len()).collect().item()
    if rows < FEWEST_ROWS:
        raise DataError(
            f"the table has {rows} {'row' if rows == 1 else 'rows'}; training and evaluation need at least {FEWEST_ROWS}"
        )
    sample = _sample(table, rows)
    facts = summarise(table, schema)
    columns = {
        name: infer_column(table, sample, name, held, rows, facts.get(name))
        for name, held in schema.items()
        if name not in asked.drop
    }
    sample = sample.select(list(columns))
    if asked.user or asked.item or asked.kind == "recommendation":
        return _purchases(table, asked, columns, rows)
    return _cases(table, sample, asked, columns, rows, today)


def _sample(table: pl.LazyFrame, rows: int) -> pl.DataFrame:
    """Up to SAMPLE_ROWS rows, the same ones each time, in the order of the table."""
    if rows <= SAMPLE_ROWS:
        return table.collect()
    chosen = pl.col("__row").hash(0) % rows < SAMPLE_ROWS
    return table.with_row_index("__row").filter(chosen).drop("__row").collect(engine="streaming")


# --- recommendation


def _purchases(table: pl.LazyFrame, asked: InitOptions, columns: dict[str, Column], rows: int) -> InferredSchema:
    """A recommendation problem."""
    if not asked.user or not asked.item:
        raise ParamsError("recommendation needs --user COL and --item COL")
    time = asked.time
    if time is None and asked.order is None:
        dates = [each.name for each in columns.values() if each.inferred_type == "date"]
        if len(dates) != 1:
            raise ParamsError(
                f"recommendation needs --time COL (time of purchase) or --order COL (order number); "
                f"date columns are {', '.join(dates) or 'none'}"
            )
        time = dates[0]
    if time is not None and columns[time].inferred_type != "date":
        raise ParamsError(
            f"--time {time}: contains no dates or times ({columns[time].summary}); name another column, or use --order"
        )
    warnings = [
        f"{name}: {columns[name].missing:,} rows have no value; they are left out"
        for name in (asked.user, asked.item)
        if columns[name].missing
    ]
    if asked.basket is None:
        warnings.append(f"no --basket: purchases of one {asked.user} with the same {time or asked.order} are one basket")
    for name in (asked.user, asked.item):
        if columns[name].distinct < FEWEST_ROWS:
            raise DataError(f"{name}: {columns[name].distinct} distinct values; recommendation needs at least {FEWEST_ROWS}")
    reasons = {"kind": "user and item are given"}
    _refuse_outputs([asked.user, asked.item], ["rank", "score", "source"])
    named = ((getattr(asked, part), part) for part in ("user", "item", "basket", "order"))
    parts = {column: part for column, part in named if column}
    kept = tuple(each if each.name in (*parts, time) else replace(each, role=None) for each in columns.values())
    shape = find_shape(table, asked.user, asked.item, asked.basket, time) if time else None
    warnings += shape.notes if shape else ()
    windows = shape.windows if shape else _order_windows(table, asked.user, str(asked.order))
    return InferredSchema(
        "recommendation", rows, kept, time=time, parts=parts, reasons=reasons, warnings=tuple(warnings), shape=shape,
        windows=windows,
    )  # fmt: skip


def _order_windows(table: pl.LazyFrame, user: str, order: str) -> int:
    per_user = table.drop_nulls([user, order]).group_by(user).agg(orders=pl.col(order).n_unique())
    return count_windows(int(per_user.select(pl.col("orders").max()).collect().item() or 0))


# --- one row per case


def _cases(
    table: pl.LazyFrame, sample: pl.DataFrame, asked: InitOptions, columns: dict[str, Column], rows: int, today: date
) -> InferredSchema:
    """Classification, regression or clustering: one row per case."""
    reasons: dict[str, str] = {}
    warnings: list[str] = []
    kind = _kind(table, asked, columns, rows, reasons, warnings)
    target = columns[asked.target] if asked.target else None
    classes = problems.predictions(kind).target == "class"
    outputs = [f"{PREFIX}{each}" for each in _counts(table, target)] if target and classes else []
    _refuse_outputs(table.collect_schema().names(), ["prediction", *outputs, NOT_SCORED])
    positive = _positive(table, target, reasons) if target and classes else None
    roles = choose_roles(table, sample, asked, columns, rows, classes, today)
    for name in (asked.target, roles.entity):
        if name is not None:
            columns[name] = replace(columns[name], role=None, reason="")
    found = InferredSchema(kind, rows, tuple(columns.values()), asked.target, positive, roles.entity, roles.time)
    leaks = target_leakage.find_leaks(sample, found.features, asked.target, kind, roles.time) if asked.target else []
    _mark_leaks(leaks, columns, warnings)
    copies = _duplicates(table, sample, asked.target, rows, warnings)
    _require_features(asked, columns)
    return replace(
        found,
        columns=tuple(columns.values()),
        test_key=() if roles.entity or roles.time else _test_key(sample, columns, asked.target),
        duplicates=copies,
        reasons=reasons | roles.reasons,
        costs=roles.costs,
        warnings=tuple(dict.fromkeys([*warnings, *roles.warnings])),
    )


def _refuse_outputs(names: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise DataError for a column whose name a column of scored rows has."""
    if taken := [name for name in names if name in outputs]:
        raise DataError(
            f"column {taken[0]}: scored rows get a column of that name; rename it in the file or by a query, so that such rows "
            "can be scored"
        )


def _mark_leaks(leaks: Sequence[target_leakage.Leak], columns: dict[str, Column], warnings: list[str]) -> None:
    """Leave out copies of the target, unless no feature is left then; tell all leaks, in the column's reason too."""
    copies = {name for leak in leaks if leak.copy for name in leak.columns}
    alone = all(each.name in copies for each in columns.values() if each.role)
    for each in leaks:
        leak = replace(each, copy=each.copy and not alone)
        warnings.append(leak.warning)
        for name in leak.columns:
            role, facts = columns[name].role, f"{leak.subject}: {leak.facts}" if leak.subject else leak.facts
            columns[name] = replace(columns[name], role=None if leak.copy else role, reason=facts)


def _test_key(sample: pl.DataFrame, columns: Mapping[str, Column], target: str | None) -> tuple[str, ...]:
    """Few columns that make the rows distinct, identifiers before features; no row number, which another export may change."""
    usable = [each for each in columns.values() if each.name != target and (each.role or each.inferred_type == "identifier")]
    kept = [each for each in usable if each.reason != ROW_NUMBER and not ROW_NAME.fullmatch(each.name)]
    kept = kept or [each for each in columns.values() if each.role]
    ordered = sorted(kept, key=lambda each: (each.role is not None, -each.distinct))
    return tuple(distinguishing(sample, [each.name for each in ordered]))


def _kind(
    table: pl.LazyFrame,
    asked: InitOptions,
    columns: Mapping[str, Column],
    rows: int,
    reasons: dict[str, str],
    warnings: list[str],
) -> KindName:
    """The kind of problem. Raises DataError for a target that cannot be predicted."""
    if asked.target is None:
        if asked.kind and problems.predictions(asked.kind).target:
            raise ParamsError(f"{asked.kind} needs --target COL, the column to predict")
        reasons["kind"] = "no target is given"
        return "clustering"
    if asked.target in asked.drop:
        raise ParamsError(f"--drop {asked.target}: is also the target")
    if asked.kind and not problems.predictions(asked.kind).target:
        raise ParamsError(f"{asked.kind} has no target; remove --target, or choose another kind")
    target = columns[asked.target]
    where = f"--target {target.name}"
    if target.inferred_type == "unusable":
        raise DataError(f"{where}: {target.reason}; name a column of numbers or categories")
    if target.inferred_type == "empty":
        raise DataError(f"{where}: all values are missing")
    if target.inferred_type == "constant" or target.distinct == 1:
        raise DataError(f"{where}: has a single value ({target.summary}); there is nothing to predict")
    if target.inferred_type == "date":
        raise DataError(f"{where}: is a date; add a column with a number to predict, such as the days until that date")
    if rows - target.missing < FEWEST_ROWS:
        raise DataError(
            f"{where}: {rows - target.missing} rows have a value; training and evaluation need at least {FEWEST_ROWS}"
        )
    if target.missing:
        warnings.append(f"{target.name}: {target.missing:,} of {rows:,} rows have no target; they are not used for training")
    kind = asked.kind or _kind_of(target, table, reasons, warnings)
    if asked.kind:
        reasons["kind"] = "given"
    words = target.inferred_type in ("category", "text", "identifier") and target.low is None
    holds = problems.predictions(kind).target
    if holds == "number" and words:
        raise DataError(f"{where}: contains text ({target.summary}); regression predicts numbers. Use --kind classification")
    if holds == "class":
        _check_classes(table, target, rows, warnings)
    return kind


def _kind_of(target: Column, table: pl.LazyFrame, reasons: dict[str, str], warnings: list[str]) -> KindName:
    if target.low is None:
        reasons["kind"] = f"{target.name} has {target.distinct:,} categories"
        return "classification"
    if target.distinct == 2:
        reasons["kind"] = f"{target.name} has two values"
        return "classification"
    if target.inferred_type == "category" or (target.whole and target.distinct <= WHOLE_CLASSES):
        reasons["kind"] = f"{target.name} has {target.distinct} distinct integers"
        warnings.append(
            f"{target.name}: {target.distinct} distinct integers are treated as classes; if they are amounts or counts, "
            "use --kind regression"
        )
        return "classification"
    reasons["kind"] = f"{target.name} is a number with {'about ' if not target.whole else ''}{target.distinct:,} values"
    return "regression"


def _check_classes(table: pl.LazyFrame, target: Column, rows: int, warnings: list[str]) -> None:
    counts = _counts(table, target)
    if len(counts) > CLASSES:
        raise DataError(
            f"--target {target.name}: {len(counts):,} distinct values in {rows:,} rows are too many classes; "
            f"{'use --kind regression' if target.low is not None else 'name another column'}"
        )
    _refuse_spellings(target, counts)
    for value, count in counts.items():
        if count == 1:
            warnings.append(f"{target.name}: a single row is {value}; the class cannot be both trained on and evaluated")
        elif count < TINY_CLASS:
            warnings.append(f"{target.name}: {count} rows are {value}; too few to evaluate that class")


def _refuse_spellings(target: Column, counts: Mapping[str, int]) -> None:
    """Raise DataError for classes that differ by blanks or case alone: labels written in another way would be other classes."""
    written: dict[str, list[str]] = {}
    for name, count in counts.items():
        written.setdefault(" ".join(name.split()).casefold(), []).append(f"{name!r} ({count:,} rows)")
    several = [" and ".join(names) for names in written.values() if len(names) > 1]
    if several:
        raise DataError(
            f"--target {target.name}: classes differ by blanks or case alone: {'; '.join(several[:5])}. "
            "Write each class one way in the file, or in a query (lower, trim)"
        )


def _counts(table: pl.LazyFrame, target: Column) -> dict[str, int]:
    """Class -> rows, the most frequent first. Whole numbers are named alike: 1 for 1, 1.0 and " 1"."""
    name = target.name
    text = pl.col(name).cast(pl.String)
    if target.low is not None and target.whole:
        text = text.str.strip_chars().str.to_lowercase()
        number = text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.coalesce(number, text)
    counted = table.select(text.alias("value")).drop_nulls().group_by("value").len()
    counted = counted.sort("len", "value", descending=[True, False]).collect()
    return dict(counted.iter_rows())


def _positive(table: pl.LazyFrame, target: Column, reasons: dict[str, str]) -> str | None:
    """The positive class of two: the one with a common name, otherwise the rarer one."""
    counts = _counts(table, target)
    if len(counts) != 2:
        return None
    usual = [name for name in counts if name.strip().lower() in POSITIVE]
    if len(usual) == 1 and (usual != ["1"] or not counts.keys().isdisjoint(NEGATIVE_OF_1)):
        reasons["positive_class"] = "by its name"
        return usual[0]
    (other, more), (rarer, fewer) = counts.items()
    same = f"{other} and {rarer} have {fewer:,} rows each" if more == fewer else f"{fewer:,} rows; {other} has {more:,}"
    reasons["positive_class"] = same if more == fewer else f"the rarer one: {same}"
    return rarer


def _duplicates(table: pl.LazyFrame, sample: pl.DataFrame, target: str | None, rows: int, warnings: list[str]) -> int:
    """The number of duplicate rows; warn about them, and about rows that differ only in the target."""
    usable = [name for name, kind in sample.schema.items() if not unusable_reason(kind)]
    if not usable:
        return 0
    copies = rows - table.select(pl.struct(usable).hash().n_unique()).collect().item()
    if copies:
        warnings.append(f"{copies:,} {'row repeats' if copies == 1 else 'rows repeat'} an earlier row in every column")
    features = [name for name in usable if name != target]
    if target is not None and features:
        pairs = sample.select(same=pl.struct(features), target=pl.col(target))
        kinds = pairs.group_by("same").agg(kinds=pl.col("target").drop_nulls().n_unique(), rows=pl.len())
        if (count := int(kinds.filter(pl.col("kinds") > 1)["rows"].sum())) > 1:
            warnings.append(
                f"{count:,} of {sample.height:,} rows differ from another row only in {target}; no model can distinguish them"
            )
    return copies


def _require_features(asked: InitOptions, columns: Mapping[str, Column]) -> None:
    if any(each.role for each in columns.values()):
        return
    others = [each for each in columns.values() if each.name not in asked.columns().values()]
    said = "; ".join(f"{each.name} {each.reason or each.summary}" for each in others[:5]) or "there is no other column"
    raise DataError(f"no feature is left: {said}. The table needs columns that vary and are known at prediction time")


def describe_columns(found: InferredSchema) -> Iterable[tuple[str, str, str, str]]:
    """One row per column: name, role, content, and why it is a feature or not."""
    for each in found.columns:
        parts = [part for part in ("target", "entity", "time") if getattr(found, part) == each.name]
        parts += [found.parts[each.name]] if each.name in found.parts else []
        missing = f", {each.missing / found.rows:.0%} missing" if each.missing else ""
        left_out = "left out: " if each.reason and not each.role and not parts else ""
        what = [each.inferred_type] if not parts or (each.role and not found.parts) else []
        yield each.name, " ".join([*parts, *what]), f"{each.summary}{missing}", left_out + each.reason
