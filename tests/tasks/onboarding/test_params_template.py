"""What is drafted reads back as meant, and gets into any params.yaml without moving a byte of what is there."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.onboarding import params_template
from evergreen.tasks.onboarding.params_template import Block, Commented, CommentLine, Insertion, Lines

COLUMNS = Block({"a b": "number", CommentLine("c: left out"): None})
FEATURES = Block(table="new", target=Commented("y", "two values"), columns=COLUMNS)
SECTION = Block(question="Is it?", features=FEATURES, pipeline={}, tune={}, train={}, evaluate={}, gate={})
TABLE = Block(csv="new.csv", separator=";")
RULES = Block(max_bad_share=0.05, expectations=Lines([{"type": "expect_column_to_exist", "kwargs": {"column": "a"}}]))
PARTS = params_template.insertions("new", "classification", TABLE, RULES, SECTION)

OLD = """\
# top
project: {name: shop, as_of: "2024-01-31"}   # the shop

problems:
  old: regression   # first
  # spare: clustering

ingest:
  old: {csv: old.csv}

validate:
  old:
    unique: [id]   # the key

    # and more
old:
  question: How much?
  features: {table: old, target: y, columns: {x: number}}
  tune: {}
# the end
"""


def read(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


def inserted(old: str, new: str) -> bool:
    """Whether `old` is left of `new` when characters are taken out of it."""
    place = 0
    for mark in new:
        if place < len(old) and mark == old[place]:
            place += 1
    return place == len(old)


def lines_stay(old: str, new: str) -> bool:
    there = iter(new.splitlines(keepends=True))
    return all(any(line.rstrip("\r\n") == each.rstrip("\r\n") for each in there) for line in old.splitlines(keepends=True))


def check(old: str) -> str:
    new = params_template.insert(old, PARTS)
    was, now = read(old.removeprefix("\ufeff")), read(new.removeprefix("\ufeff"))
    assert now.pop("new") == params_template.plain(SECTION)
    for key, value in (
        ("problems", "classification"),
        ("ingest", params_template.plain(TABLE)),
        ("validate", params_template.plain(RULES)),
    ):
        assert now[key].pop("new") == value
        assert now[key] == (was.get(key) or {})
        now.pop(key)
        was.pop(key, None)
    assert now == was
    assert inserted(old, new)
    return new


def test_a_problem_joins_at_the_end_of_each_part():
    new = check(OLD)
    assert lines_stay(OLD, new)
    assert "  old: regression   # first\n  new: classification\n  # spare: clustering\n" in new
    assert "    unique: [id]   # the key\n  new:\n    max_bad_share: 0.05\n" in new
    assert new.index("# the end") < new.index("\nnew:\n")


def test_windows_line_ends_stay_and_new_lines_have_them_too():
    new = check(OLD.replace("\n", "\r\n"))
    assert "\n" not in new.replace("\r\n", "")


EMPTY = "project: {name: s}\nproblems: {}\nvalidate: {}\n"
ODD = {
    "no newline at the end": OLD.rstrip("\n"),
    "a byte order mark": "\ufeff" + OLD,
    "a document mark": "---\n" + OLD,
    "an end mark": OLD + "...\n",
    "flow mappings": 'project: {name: s}\nproblems: {a: classification}\ningest: {t: {csv: "x.csv"}}\nvalidate: {}\n',
    "flow mappings over lines": "problems: {\n  a: regression,  # one\n}\ningest: {t: {csv: x}} # here\nvalidate: {}\n",
    "a flow file": "{project: {name: s}, problems: {a: regression}, ingest: {}, validate: {}}\n",
    "keys without values": "project: {name: s}\nproblems:\n\ningest:   # none yet\nvalidate:",
    "no validate": "project: {name: s}\nproblems: {a: regression}\ningest: {t: {csv: x}}\n",
    "four spaces": "problems:\n    a: regression\ningest:\n    t:\n        csv: x\n\nvalidate: {}\n",
    "an indented file": "  project: {name: s}\n  problems: {a: regression}\n  ingest:\n    t: {csv: x}\n  validate: {}\n",
    "a text in a block": f"{EMPTY}ingest:\n  t:\n    url: x\n    sql: |\n      select\n      1\n\na: {{question: x}}\n",
    "a kept text at the end": f"{EMPTY}ingest:\n  t:\n    url: x\n    sql: |+\n      select 1\n\n\n",
    "a list at the end": f"{EMPTY}ingest:\n  t:\n    csv: x\n    columns:\n    - a\n    - b   # last\na: {{}}\n",
    "an anchor": f"y: &p {{name: s}}\n{EMPTY}ingest:\n  t: &t {{csv: x}}\n  u: *t\nx: *p\n",
    "comments at the end": f"{EMPTY}ingest: {{}}\n\n\n  # odd\n   # odder\n",
    "quoted keys": "\"project\": {name: s}\n'problems': {}\n\"ingest\":\n  'a': {csv: x}\n? validate\n: {}\n",
}


@pytest.mark.parametrize("old", ODD.values(), ids=ODD.keys())
def test_odd_files_keep_every_character(old: str):
    check(old)


def test_where_nothing_can_be_added_the_lines_are_shown_to_add_by_hand(tmp_path: Path):
    old = "project: {name: s}\nx: &p {a: regression}\nproblems: *p\ningest: {}\n"
    with pytest.raises(ParamsError, match=r"problems: its layout does not allow an insertion; .*\n.*problems:\n  new: class"):
        params_template.insert(old, PARTS)


def test_a_file_that_would_not_load_is_left_as_it_was(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("project: {name: s}\nproblems: {}\ningest: {}\n")
    bad = [*PARTS[:3], Insertion(None, "new", Block(SECTION, features={"table": "elsewhere", "columns": {"a": "number"}}))]
    with pytest.raises(ParamsError, match=r"new.features: table elsewhere is not under ingest"):
        params_template.write(path, bad)
    assert path.read_text() == "project: {name: s}\nproblems: {}\ningest: {}\n"
    params_template.write(path, PARTS)
    assert loading.load(path).problems == {"new": "classification"}


comments = st.sampled_from(["", "", "  # note", " # a: b {", "#"])


@st.composite
def files(drawn: st.DrawFn) -> str:
    """A params.yaml in some style: block, flow or empty parts, comments and blank lines between, any order, any line end."""
    entries = drawn(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3))
    whole = []
    for key in drawn(st.permutations(["project", "problems", "ingest", "validate"])):
        note = drawn(comments)
        note = f" {note}" if note.startswith("#") else note
        value = {"problems": "regression", "ingest": "{csv: x}", "validate": "{unique: [k]}", "project": "s"}[key]
        names = ["name"] if key == "project" else entries
        style = drawn(st.sampled_from(["block", "flow"]))
        if style == "flow":
            whole.append(f"{key}: {{{', '.join(f'{name}: {value}' for name in names)}}}{note}")
        else:
            indent = drawn(st.sampled_from(["  ", "    ", " "]))
            whole.append(f"{key}:{note}")
            whole += [f"{indent}{name}: {value}{note}" for name in names]
        whole += drawn(st.lists(st.sampled_from(["", "# between", "   # deep"]), max_size=2))
    end = drawn(st.sampled_from(["\n", "\r\n"]))
    return end.join(whole) + drawn(st.sampled_from(["", end, end * 3]))


@settings(max_examples=60, deadline=None)
@given(files())
def test_whatever_the_style_all_characters_stay_and_the_problem_is_in(old: str):
    check(old)


# What a draft says


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_a_scalar_reads_back_as_itself(value):
    assert read(f"{{a: [{params_template.scalar(value)}]}}")["a"] == [
        pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
    ]


@pytest.mark.parametrize(
    "text", ["no", "Yes", "on", "null", "~", "1", "1.5", "0x1f", "12:30", "2024-01-01", "a: b", "a #b", "", "-", "{x}"]
)
def test_words_that_yaml_takes_for_something_else_are_quoted(text: str):
    assert re.fullmatch(r'".*"', params_template.scalar(text))


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_bounds_hold_what_was_seen_and_keep_the_sign(low: float, width: float):
    floor, ceiling = params_template._bounds(low, low + width)
    assert floor <= low
    assert ceiling >= low + width
    assert floor >= 0 or low < 0
    assert ceiling <= 0 or low + width > 0
