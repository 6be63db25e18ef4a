"""Params template: the sections of a new problem, and their insertion into params.yaml without any other change."""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from evergreen.tasks import problems
from evergreen.tasks.config.loading import RESERVED_NAMES, load
from evergreen.tasks.config.modelling import Tune
from evergreen.tasks.config.params import KindName, Name, Params, Source
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import writing
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import Column, InferredSchema

BAD_SHARE = 0.05
"""validate.max_bad_share of a template."""
MAX_UNREADABLE = 0.05
"""ingest.max_unreadable of a template."""
RULES = 60
"""A table with more features gets no rules for single columns: people must be able to read them."""
SLACK = 0.5
"""Slack of numeric bounds, as a share of the observed range."""
SMALL = 20_000
"""Smaller tables get five folds, so that each trains on more rows."""
QUANTITIES = ("quantity", "qty", "units", "amount")
RATINGS = ("rating", "ratings", "stars", "score")
MOST_RATINGS = 21
"""Different values of a column of ratings: 0 to 10 in halves."""
"""Names of a column that counts what was bought."""


class Commented(NamedTuple):
    """A value with a comment at the end of its line."""

    value: Any
    comment: str


class Block(dict[str, Any]):
    """A mapping in block style: one line per key."""


class Lines(list[Any]):
    """A list in block style: one line per element."""


class CommentLine(str):
    """A key that is written as a comment line."""


# --- sections


def source(found: InferredSchema, given: Source, timed: bool) -> Block:
    """The table's source under `ingest`. `timed`: its time column is also the time at which a row became known."""
    default = Source(csv="x").model_dump()
    said = {name: value for name, value in given.model_dump(mode="json").items() if value and value != default.get(name)}
    unusable = [each.name for each in found.columns if each.inferred_type == "unusable"]
    if unusable:
        kept = [each.name for each in found.columns if each.name not in unusable]
        said["columns"] = Commented(kept, f"all but {', '.join(unusable)}: no model can use them")
    if given.types:
        said["types"] = Block(given.types)
        said["max_unreadable"] = Commented(MAX_UNREADABLE, "share of a column's values that may not fit its type")
    if timed:
        said["time"] = Commented(found.time, "rows after project.as_of are left out")
    return Block(said)


def rules(found: InferredSchema, asked: InitOptions) -> Block:
    """The table's rules under `validate`. Most are warnings: the next file may differ a little."""
    key = found.column(found.entity)
    lines = Block(max_bad_share=Commented(BAD_SHARE, "share of rows; above it the run stops"))
    named = [found.entity, asked.user, asked.item]
    if key is not None and key.distinct == found.rows:
        lines["unique"] = [key.name]
    must = [_rule("not_be_null", name, severity="error") for name in named if name is not None]
    about = [each for each in found.columns if each.role or each.name == found.target]
    if len(about) > RULES:
        about = [each for each in about if each.name == found.target]
    expectations = [*must, *(rule for each in about for rule in _expected(each, found))]
    if expectations:
        lines["expectations"] = Lines(expectations)
    return lines


def _expected(column: Column, found: InferredSchema) -> Iterator[dict[str, Any]]:
    if not column.missing:
        yield _rule("not_be_null", column.name)
    elif column.name != found.target and column.missing < 0.5 * found.rows:
        yield _rule("not_be_null", column.name, mostly=math.floor(100 * (1 - 2 * column.missing / found.rows)) / 100)
    if column.levels:
        yield _rule("be_in_set", column.name, value_set=list(column.levels))
    elif column.inferred_type == "number" and isinstance(column.low, int | float) and not isinstance(column.low, bool):
        low, high = _bounds(column.low, column.high)
        if math.isfinite(low) and math.isfinite(high):
            yield _rule("be_between", column.name, min_value=low, max_value=high)


def _rule(what: str, column: str, *, severity: str = "warning", **kwargs: Any) -> dict[str, Any]:
    said = {"type": f"expect_column_values_to_{what}", "kwargs": {"column": column, **kwargs}}
    return said if severity == "error" else {**said, "severity": severity}


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Bounds with SLACK, rounded outward to two digits; non-negative numbers keep the bound 0."""
    room = SLACK * (high - low)
    floor = 0 if low >= 0 else _outward(low - room, -1)
    return (floor, 0 if high <= 0 else _outward(high + room, 1))


def _outward(value: float, side: int) -> float:
    if abs(value) < 1e-300 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    found = (math.floor if side < 0 else math.ceil)(value / step) * step
    return int(found) if float(found).is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")


def section(name: str, found: InferredSchema, asked: InitOptions) -> Block:
    """The section of the problem."""
    features = _interactions(name, found, asked) if found.kind == "recommendation" else _features(name, found, asked)
    lists = Block(show=Commented("discover", found.shape.repeats)) if found.shape and found.shape.discover else None
    bundled = found.shape is not None and found.shape.traits.bundles
    rest = {
        "pipeline": Block(sources=Block(co_visitation=Commented(True, "bundles"))) if bundled else {},
        **({"lists": lists} if lists else {}),
        "tune": _tune(found),
        "train": {},
        "evaluate": {"windows": found.windows},
        "gate": {"metric": "ndcg_novel"} if lists else {},  # by the lists that are shown
    }
    return Block(question=_question(name, found, asked), features=features, **rest)


def _tune(found: InferredSchema) -> dict[str, int | str]:
    """Few trials for a recommender, which is slow to fit; more folds for a small table."""
    if found.kind == "recommendation":
        return {"n_trials": 4, "folds": 1, **({"metric": "ndcg_novel"} if found.shape and found.shape.discover else {})}
    trials: dict[str, int | str] = {"n_trials": Tune.model_fields["n_trials"].default}
    return {**trials, "folds": 5} if found.target is not None and found.time is None and found.rows < SMALL else trials


def _question(name: str, found: InferredSchema, asked: InitOptions) -> str:
    columns = {"target": found.target, "positive_class": found.positive_class, "user": asked.user, "item": asked.item}
    return problems.predictions(found.kind).question(name, columns)


def _features(name: str, found: InferredSchema, asked: InitOptions) -> Block:
    said = Block(table=name)
    for key in ("target", "positive_class", "entity", "time"):
        if value := getattr(found, key):
            reason = found.reasons.get("kind" if key == "target" else key, "")
            said[key] = Commented(value, reason if reason != "given" else "")
    if found.test_key:
        said["test_key"] = Commented(list(found.test_key), "draws the test rows; other columns may come and go")
    columns = Block()
    for each in found.columns:
        if each.role:
            columns[each.name] = Commented(each.role, "; ".join(part for part in (each.summary, each.reason) if part))
        elif each.name not in (found.target, found.entity):
            columns[CommentLine(f"{scalar(each.name)}: {_would_be(each)}  # left out: {each.reason or each.inferred_type}")] = (
                None
            )
    columns |= {CommentLine(f"{scalar(each)}  # left out: --drop"): None for each in asked.drop}
    said["columns"] = columns
    return said


def _would_be(column: Column) -> str:
    return {"identifier": "category", "constant": "category", "empty": "category", "unusable": "category"}.get(
        column.inferred_type, column.inferred_type
    )


def _interactions(name: str, found: InferredSchema, asked: InitOptions) -> Block:
    assert asked.user
    assert asked.item
    said = Block(table=name, user=asked.user, item=asked.item)
    if asked.basket:
        said["basket"] = asked.basket
    else:
        said["basket"] = Commented(found.time or asked.order, "purchases of one user at one time")
    if rated := next((each.name for each in found.columns if _is_rating(each)), None):
        said["weight"], said["weight_as"] = Commented(rated, "the lowest rating is no success"), "rating"
    elif counted := next((each.name for each in found.columns if _is_quantity(each)), None):
        said[CommentLine(f"weight: {scalar(counted)}  # to let purchases count by their quantity")] = None
    if asked.order and not found.time:
        each = Commented("user", "orders are numbered per user; shop: one sequence for all")
        return Block(**said, order=asked.order, order_scope=each, horizon_orders=1)
    if back := next((each.name for each in found.columns if _counts_returns(each)), None):
        said["where"] = Commented(f'"{back}" >= 0', "a return is not a purchase")
    if found.shape:
        said["horizon_days"] = Commented(found.shape.horizon_days, "label: purchases in this many days after the cutoff")
        said["judge_by"] = Commented(found.shape.judge_by, found.shape.why)
    return said


def _counts_returns(column: Column) -> bool:
    """Whether a column of quantities has negative ones."""
    return _is_quantity(column) and isinstance(column.low, int | float) and column.low < 0


def _is_quantity(column: Column) -> bool:
    return column.name.lower() in QUANTITIES and isinstance(column.low, int | float) and column.low != column.high


def _is_rating(column: Column) -> bool:
    named = column.name.lower() in RATINGS and column.distinct <= MOST_RATINGS
    return named and isinstance(column.low, int | float) and column.low != column.high


# --- YAML


PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf", "_"}
"""Plain scalars that some YAML parsers do not read as strings."""


def scalar(value: Any) -> str:
    """One value, written so that YAML 1.1 and 1.2 read it alike."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value) if "e" not in repr(value) else f"{value:.6e}"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return '"' + "".join(_escaped(mark) for mark in text) + '"'


def _escaped(mark: str) -> str:
    if mark in '"\\':
        return f"\\{mark}"
    if mark.isprintable() and mark != "\ufeff":
        return mark
    code = ord(mark)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def flow(value: Any) -> str:
    """A value in flow style, without comments."""
    if isinstance(value, Commented):
        return flow(value.value)
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{scalar(key)}: {flow(each)}" for key, each in value.items() if not isinstance(key, CommentLine))
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(each) for each in value) + "]"
    return scalar(value)


def block(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """The lines of a mapping in block style, with its comments aligned."""
    lines: list[tuple[str, str]] = []
    for key, noted in value.items():
        each, comment = noted if isinstance(noted, Commented) else (noted, "")
        if isinstance(key, CommentLine):
            lines.append((f"{indent}# {key}", ""))
        elif isinstance(each, Block) and each:
            lines += [(f"{indent}{scalar(key)}:", comment), *((line, "") for line in block(each, f"{indent}  "))]
        elif isinstance(each, Lines) and each:
            lines += [(f"{indent}{scalar(key)}:", comment), *((f"{indent}  - {flow(part)}", "") for part in each)]
        else:
            lines.append((f"{indent}{scalar(key)}: {flow(each)}", comment))
    width = min(48, max((len(line) for line, comment in lines if comment), default=0))
    return [f"{line:<{width}}  # {_one_line(comment)}" if comment else line for line, comment in lines]


def _one_line(comment: str) -> str:
    return "".join(mark if mark.isprintable() else " " for mark in comment)


def plain(value: Any) -> Any:
    """The value without comments, as a YAML parser returns it."""
    if isinstance(value, Commented):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items() if not isinstance(key, CommentLine)}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


# --- insertion into the file


class Insertion(NamedTuple):
    """A key and its value to insert under the key `under`, or at the top level (None)."""

    under: str | None
    key: str
    value: Any


def insertions(name: str, kind: KindName, table: Block, rules: Block, section: Block) -> list[Insertion]:
    """All that a new problem adds: its kind, its table under ingest and validate, and its section."""
    return [
        Insertion("problems", name, kind),
        Insertion("ingest", name, table),
        Insertion("validate", name, rules),
        Insertion(None, name, section),
    ]


def check_name(name: str, params: Params | None) -> None:
    """Raise ParamsError for a name that is invalid, reserved, or used by a problem or a table."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ParamsError(
            f"{name!r}: invalid name: a name starts with a letter, then has letters (a-z), digits, _ and -, "
            "64 at most; choose another one"
        ) from None
    if name in RESERVED_NAMES:
        raise ParamsError(f"{name}: is a reserved name; choose another one")
    if params is None:
        return
    if name in params.problems:
        raise ParamsError(
            f"{name}: is already a problem in params.yaml; nothing was changed. Edit its section, choose another name, or "
            f"remove {name} under problems, ingest and validate and its section, then run this command again."
        )
    if name in params.ingest:
        raise ParamsError(f"{name}: is already a table under ingest in params.yaml; nothing was changed. Choose another name.")


def write(path: Path, added: Sequence[Insertion]) -> None:
    """Insert into the params.yaml at `path`. Raises ParamsError, without a change, if its layout does not allow it."""
    before = path.read_bytes()
    text = insert(before.decode("utf8"), added)
    with writing(path) as scratch:
        scratch.write_bytes(text.encode("utf8"))
        load(scratch)


def insert(text: str, added: Sequence[Insertion]) -> str:
    """The text of params.yaml with the insertions. Raises ParamsError if its layout does not allow them."""
    bom, text = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    for part in added:
        text = _insert_one(text, part)
    return bom + text


def _insert_one(text: str, part: Insertion) -> str:
    wanted = _read(text)
    if part.under is None:
        wanted[part.key] = plain(part.value)
    else:
        wanted[part.under] = {**(wanted.get(part.under) or {}), part.key: plain(part.value)}
    for new in _candidates(text, part):
        try:
            if _read(new) == wanted:
                return new
        except (YAMLError, ValueError):
            continue
    lines = "\n".join(block({part.under: Block({part.key: part.value})} if part.under else {part.key: part.value}))
    raise ParamsError(
        f"params.yaml: {part.under or part.key}: its layout does not allow an insertion; nothing was changed. "
        f"Write it with one line per key, or add by hand:\n{lines}"
    )


def _read(text: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text) or {}


def _candidates(text: str, part: Insertion) -> Iterator[str]:
    """Candidate texts with the insertion, the best first."""
    root = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    if not isinstance(root, MappingNode):
        return
    if part.under is None:
        yield from _at_top(text, root, part.key, part.value)
        return
    found = next(((key, value) for key, value in root.value if key.value == part.under), None)
    if found is None:
        yield from _at_top(text, root, part.under, Block({part.key: part.value}))
        return
    key, node = found
    indent = " " * (key.start_mark.column + 2)
    lines = block({part.key: part.value}, indent)
    if isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index:
        yield _after_line(text, key.end_mark.index, lines)
    elif isinstance(node, MappingNode):
        yield from _into(text, node, part.key, part.value)


def _at_top(text: str, root: MappingNode, key: str, value: Any) -> Iterator[str]:
    if root.flow_style:
        yield from _into(text, root, key, value)
        return
    column = root.value[0][0].start_mark.column if root.value else 0
    lines = block({key: value}, " " * column)
    yield _after_line(text, len(text), ["", *lines])
    yield _after_line(text, len(text), lines)
    yield _after_line(text, _end(root), ["", *lines])
    yield _after_line(text, _end(root), lines)


def _into(text: str, node: MappingNode, key: str, value: Any) -> Iterator[str]:
    """Insert after the last entry of a mapping, in its style."""
    if node.flow_style and not node.value:
        at = node.start_mark.index + 1
        yield f"{text[:at]}{scalar(key)}: {flow(value)}{text[at:]}"
    elif node.flow_style:
        at = max(node.value[-1][0].end_mark.index, node.value[-1][1].end_mark.index)
        yield f"{text[:at]}, {scalar(key)}: {flow(value)}{text[at:]}"
    elif node.value:
        lines = block({key: value}, " " * node.value[0][0].start_mark.column)
        yield _after_line(text, _end(node), lines)


def _end(node: Node) -> int:
    """Index of the end of a node's content; an alias ends with the line of its key."""
    end = node.start_mark.index
    while isinstance(node, MappingNode | SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        if isinstance(last, tuple):
            end, node = max(end, last[0].end_mark.index), last[1]
        else:
            node = last
        if node.end_mark.index < end:
            return end
    return max(end, node.end_mark.index)


def _after_line(text: str, at: int, lines: Iterable[str]) -> str:
    """Insert `lines` below the line of the character before `at`."""
    newline = "\r\n" if "\r\n" in text else "\n"
    while at and at < len(text) and text[at - 1] in " \t\r\n":
        at -= 1
    end = text.find("\n", at)
    head, tail = (text, "") if end < 0 else (text[: end + 1], text[end + 1 :])
    between = newline if head and not head.endswith("\n") else ""
    return head + between + "".join(f"{line}{newline}" for line in lines) + tail
