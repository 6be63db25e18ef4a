"""Columns made of JSON are those made of dictionaries."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evergreen.monitoring.ledger import blocks, json_columns
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.spool import Spool, drain

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**25), 10**25), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4), st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip
COLUMNS = st.sampled_from(
    [st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1), st.text(max_size=4), st.booleans(),
     st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.integers(0, 9), st.floats(0, 1)), VALUES]
)  # fmt: skip
NAMES = st.sampled_from(["a", "b c", "ümläut", 'quo"te', "back\\slash", ""])


@st.composite
def tables(draw: st.DrawFn) -> list[bytes]:
    """Rows of some columns; some rows may have other keys, another order, or a value of another type."""
    kinds = draw(st.dictionaries(NAMES, COLUMNS, max_size=4))
    rows = [{name: draw(kind) for name, kind in kinds.items()} for _ in range(draw(st.integers(1, 24)))]
    if draw(st.booleans()):
        rows[-1] = {**dict(reversed(rows[-1].items())), draw(NAMES): draw(VALUES)}
    if draw(st.booleans()) and rows[-1]:
        rows[-1].popitem()
    return [json.dumps(row).encode() for row in rows]


@settings(max_examples=200, deadline=None)
@given(rows=tables())
def test_columns_of_json_are_those_of_dictionaries(rows):
    found = json_columns.to_frame(rows, blocks.as_series)
    if found is not None:
        assert_frame_equal(found, blocks._as_frame(blocks.to_columns([orjson.loads(each) for each in rows]), len(rows)))


@pytest.mark.parametrize(
    "odd",
    [{"a": 1.5, "b": "x", "c": 1}, {"a": 1.5}, {"a": "x", "b": "x"}, {"a": True, "b": "x"}, {"a": 1.5, "b": 2}, [1], None],
)
def test_rows_of_other_names_or_types_are_left_to_dictionaries(odd):
    plain = [b'{"a":0.5,"b":"x"}'] * (json_columns.SAMPLE + 5)
    assert json_columns.to_frame(plain, blocks.as_series) is not None
    assert json_columns.to_frame([*plain, orjson.dumps(odd)], blocks.as_series) is None


def test_a_drained_segment_makes_no_dictionary_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spool, ledger = Spool(tmp_path / "spool"), Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}")
    rows = [{"size": place / 4, "colour": "red", "owner": "ann"} for place in range(200)]
    for place, row in enumerate(rows):
        spool.put(
            str(place),
            "dear",
            1,
            "champion",
            datetime(2026, 5, 3, tzinfo=UTC),
            "ann",
            row,
            {"prediction": 1.0},
            date(2026, 5, 2),
        )
    spool.close()
    loaded = list[bytes]()
    monkeypatch.setattr(
        "evergreen.monitoring.ledger.json_columns.orjson.loads", lambda text: loaded.append(text) or json.loads(text)
    )
    assert drain(tmp_path / "spool", ledger) == 200
    assert len(loaded) == 2 * json_columns.SAMPLE
    found = ledger.read("dear")
    assert found.features.to_dicts() == rows
    assert found.rows["prediction"].to_list() == [1.0] * 200
    assert found.rows["at"].to_list() == [datetime(2026, 5, 3, tzinfo=UTC)] * 200
