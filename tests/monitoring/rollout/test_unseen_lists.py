"""The gate and lists that nobody saw: a challenger whose lists would surely have earned less is not promoted."""

import json
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.flows import settings, steps
from evergreen.monitoring.ledger.predictions import Label, Ledger, Prediction
from evergreen.monitoring.rollout import unseen_lists
from evergreen.tasks import features, problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Model
from evergreen.tasks.release.off_policy_value import OffPolicyValue
from evergreen.tasks.release.promotion_gate import Verdict

PROBLEM = "next"
USERS, ITEMS, WEEKS = 120, 3, 20
START = date(2024, 1, 1)
AS_OF = START + timedelta(days=7 * WEEKS - 1)
FIRST = AS_OF - timedelta(days=28)
"""Lists of the 14 days after it are judged."""
PARAMS = f"""
project: {{seed: 7, name: favourites, as_of: "{AS_OF}"}}
ingest: {{sales: {{parquet: sales.parquet, time: day}}}}
problems: {{next: recommendation}}
next:
  question: What next?
  features: {{table: sales, user: user, item: item, basket: day, horizon_days: 14, min_users: 2}}
  pipeline: {{k: 1}}
  tune: {{n_trials: 1, folds: 1}}
  evaluate: {{windows: 1, resamples: 50}}
"""


def favourite(user: int) -> str:
    return f"item {user % ITEMS}"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A shop in which each user buys the same item each week."""
    layout = Layout(tmp_path_factory.mktemp("favourites"))
    layout.params.write_text(PARAMS)
    rows = [
        (f"u{user}", favourite(user), START + timedelta(days=7 * week + user % 7))
        for user in range(USERS)
        for week in range(WEEKS)
    ]
    layout.table("sales").parent.mkdir(parents=True)
    pl.DataFrame(rows, schema=["user", "item", "day"], orient="row").write_parquet(layout.table("sales"))
    features.run(loading.load(layout.params), PROBLEM, layout)
    layout.tuning(PROBLEM).mkdir(parents=True)
    return layout


def params(layout: Layout, model: str) -> Params:
    found = loading.load(layout.params)
    config = problems.kind("recommendation").defaults(model, found.section(PROBLEM))
    (layout.tuning(PROBLEM) / "best.json").write_text(json.dumps({"config": config}))
    return found


def champion(layout: Layout) -> Model:
    found = loading.load(layout.params)
    kind, section = problems.kind("recommendation"), found.section(PROBLEM)
    data = kind.load(layout.features(PROBLEM), section)
    return kind.fit(data, kind.cutoffs(data)[:3], kind.defaults("frequency", section), section, 0)


def ledger(folder: Path, lists: int = 4, **changed: Any) -> Ledger:
    """Lists of one item, drawn at random with equal chances, and what was bought after them."""
    draw, made = np.random.default_rng(1), Ledger(f"sqlite:///{folder / 'ledger.db'}")
    predictions, labels = [], []
    for user in range(USERS):
        for turn in range(lists):
            id_, at = f"{user} {turn}", datetime.combine(FIRST + timedelta(days=2 + 3 * turn), time(15), UTC)
            output = {"items": [f"item {draw.integers(ITEMS)}"], "propensities": [1 / ITEMS], "as_of": str(at.date())}
            given = {"at": at, "features": {}, "outputs": output, "cutoff": None, **changed}
            predictions.append(Prediction(id=id_, problem=PROBLEM, version=3, variant="champion", entity=f"u{user}", **given))
            labels.append(Label([favourite(user)], id=id_))
    made.append(predictions)
    made.add_labels(PROBLEM, labels)
    return made


def judge(layout: Layout, made: Ledger, model: str, version: int = 3) -> OffPolicyValue | None:
    return unseen_lists.judge_challenger(params(layout, model), PROBLEM, layout, made, champion(layout), version)


def test_a_challenger_that_shows_what_is_popular_is_surely_worse_than_one_that_shows_what_each_user_buys(layout, tmp_path):
    made = ledger(tmp_path)
    worse = judge(layout, made, "popularity")
    assert worse is not None
    assert worse.surely_worse
    assert (worse.lists, worse.users, worse.against) == (4 * USERS, USERS, "the champion's lists")
    assert worse.estimates[-1].gain == pytest.approx(-2 / 3, abs=0.2)
    equal = judge(layout, made, "frequency")
    assert equal is not None
    assert not equal.surely_worse
    assert (equal.estimates[-1].gain, equal.why) == (0, "")


@pytest.mark.parametrize(
    ("changed", "version"),
    [
        ({}, 2),
        ({"at": datetime.combine(FIRST - timedelta(days=1), time(15), UTC)}, 3),
        ({"features": {"rules": {"in_stock": True}}}, 3),
        ({"features": {"items": ["item 1"]}}, 3),
        ({"outputs": {"items": ["item 1"]}}, 3),
        ({"cutoff": FIRST}, 3),
    ],
    ids=["another version", "learned from", "rules", "a basket", "no exploration", "as of a day"],
)
def test_other_lists_are_no_evidence(layout, tmp_path, changed, version):
    assert judge(layout, ledger(tmp_path, **changed), "popularity", version) is None


def test_few_lists_are_none(layout, tmp_path):
    found = judge(layout, ledger(tmp_path, lists=1), "popularity")
    assert found is not None
    assert (found.surely_worse, found.why[:7]) == (False, "too few")


def test_neither_reads_a_purchase_that_judges_it(layout, tmp_path):
    """What is bought after the first judged day changes no list."""
    asked = []
    for shown in ("as it was", "later purchases of one item"):
        folder = tmp_path / shown
        other = Layout(folder)
        folder.mkdir()
        other.params.write_text(PARAMS)
        rows = pl.read_parquet(layout.table("sales"))
        if asked:
            late = pl.col("day") > FIRST + timedelta(days=2)
            rows = rows.with_columns(item=pl.when(late).then(pl.lit("item 0")).otherwise("item"))
        other.table("sales").parent.mkdir(parents=True)
        rows.write_parquet(other.table("sales"))
        features.run(loading.load(other.params), PROBLEM, other)
        other.tuning(PROBLEM).mkdir(parents=True)
        asked.append(judge(other, ledger(folder, lists=1), "popularity"))
    assert asked[0] == asked[1]


def verdict(promote: bool = True) -> Verdict:
    numbers = {
        "metric": "ndcg",
        "candidate": 0.5,
        "other": 0.4,
        "gain": 0.1,
        "low": 0.05,
        "high": 0.15,
        "rows": 9,
        "against": "v3",
    }
    reason = f"{'promoted' if promote else 'not promoted'}: ndcg 0.5"
    return Verdict(decision="better" if promote else "cannot tell", promote=promote, reason=reason, **numbers)


def test_the_verdict_follows_what_is_sure_and_nothing_else(layout, tmp_path):
    made = ledger(tmp_path)
    worse, few = judge(layout, made, "popularity"), judge(layout, ledger(tmp_path / "few", lists=1), "popularity")
    refused, kept = verdict().with_off_policy(worse), verdict().with_off_policy(few)
    assert (refused.decision, refused.promote) == ("worse", False)
    assert refused.reason.startswith("not promoted: surely worse by lists that nobody saw: hits per list")
    assert refused.reason.endswith("; on past data: ndcg 0.5")
    assert (kept.decision, kept.promote, kept.reason[:14]) == ("better", True, "promoted: ndcg")
    assert "too few" in kept.reason
    assert verdict(promote=False).with_off_policy(few).promote is False
    assert verdict().with_off_policy(None) == verdict()
    assert Verdict.model_validate(refused.model_dump()) == refused


def test_the_gate_asks_for_them_and_stands_where_they_fail(layout, tmp_path, monkeypatch):
    known = params(layout, "popularity")
    monkeypatch.setattr(settings, "ledger", lambda _: ledger(tmp_path))
    found = steps._off_policy(known, PROBLEM, layout, champion(layout), 3)
    assert found is not None
    assert found.surely_worse
    assert steps._off_policy(known, PROBLEM, layout, "no model", 3) is None
