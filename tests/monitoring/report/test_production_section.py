"""The section about production: monitoring runs, decisions, weeks, the timeline and a backtest."""

import re
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from evergreen.monitoring.ledger.cohorts import Cohort
from evergreen.monitoring.ledger.decisions import RetrainingRecord
from evergreen.monitoring.ledger.records import Change, Decision, Drift, Estimate, Figure, Performance, Window
from evergreen.monitoring.report import page, production_section
from evergreen.monitoring.report.production_section import ProductionRecords
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from tests.monitoring.report.finished_project import ONE, write


def monitored(day: str, alarm: bool, retrain: bool) -> Decision:
    """One monitoring run: three columns, of which `redemptions` may alarm."""
    until = datetime.fromisoformat(f"{day}T23:59:59+00:00")
    blank = {"value": 0.3, "threshold": 0.1, "p": 0.001, "importance": 0.12, "aspect": "feature", "statistic": "ks"}
    changes = (
        Change(column="redemptions", effect=0.511, significant=alarm, alarm=alarm, reason="mean 0.14 to 0.53", **blank),
        Change(column="tenure", effect=0.02, significant=True, alarm=False, reason="mean 1 to 2; no alarm: small", **blank),
    )
    performance = Performance(
        metric="roc_auc",
        greater_is_better=True,
        expected=Estimate(score=0.9, low=0.88, high=0.92, rows=2209),
        realised=Estimate(score=0.87, low=0.85, high=0.89, rows=2209),
        realised_until=until - timedelta(days=28),
        estimated=Estimate(score=0.88, low=0.85, high=0.91, rows=2209),
        matured=0.0,
    )
    window = Window(
        problem="redeem",
        version=1,
        since=until - timedelta(days=7),
        until=until,
        rows=2209,
        new_labels=4400,
        drift=Drift(changes=changes, reference_rows=20_000, alarm=alarm),
        performance=performance,
    )
    reason = f"{'' if retrain else 'no '}retrain{': ' if retrain else 'ing: '}drift <in> redemptions"
    return Decision(
        problem="redeem", at=until, retrain=retrain, trigger="drift" if alarm else None, reason=reason, window=window
    )


def begun(run: Decision, promoted: bool | None) -> RetrainingRecord:
    outcome = {"version": 2, "outcome": "roc_auc 0.867 cannot be told"} if promoted is not None else {}
    return RetrainingRecord(
        id="a", problem="redeem", at=run.at, as_of=run.at.date(), trigger="drift", reason=run.reason, by="policy",
        started=run.at, promoted=promoted, **outcome,
    )  # fmt: skip


RUNS = [
    monitored("2017-12-10", False, False),
    monitored("2017-12-17", True, True),
    monitored("2017-12-24", True, False),
]


@pytest.fixture
def one(tmp_path: Path) -> tuple[Params, Layout]:
    layout = Layout(tmp_path)
    layout.params.write_text(ONE)
    return loading.load(layout.params), layout


def drawn(one: tuple[Params, Layout], records: ProductionRecords) -> str:
    return page.build(one[0], one[1], {}, {"redeem": records}).read_text()


def test_a_problem_without_records_has_no_section_about_production(one):
    assert "In production" not in drawn(one, ProductionRecords())


def test_alarms_decisions_and_weeks_are_on_the_page_in_words(one):
    report = one[1].report("redeem") / "drift" / "2017-12-24.html"
    write(report, "")
    weeks = [Cohort(date(2017, 12, 4), 1, 2209, 0, None, None), Cohort(date(2017, 11, 6), 1, 2200, 1100, None, None)]
    text = drawn(one, ProductionRecords(RUNS, [begun(RUNS[1], False)], weeks))
    assert "3 monitoring runs; 2 with an alarm of drift; retrained 1 time, 0 promoted" in text
    assert re.search(r"24 Dec 2017.*alarm, no retraining.*17 Dec 2017.*challenger rejected.*10 Dec 2017.*no alarm", text, re.S)
    assert "v2: roc_auc 0.867 cannot be told" in text
    assert "drift &lt;in&gt; redemptions" in text
    assert re.search(r"redemptions<br><span[^>]*>alarm</span>.*mean 0.14 to 0.53.*0\.511.*12 %", text, re.S)
    assert '<a href="redeem/drift/2017-12-24.html">' in text
    assert re.search(r"6 Nov 2017.*2,200.*50 %", text, re.S)
    report.unlink()
    assert "redeem/drift/" not in drawn(one, ProductionRecords(RUNS))


def test_further_realised_figures_stand_below_the_score_of_a_week(one):
    more = {"hit_rate": Figure(score=0.61, low=0.58, high=0.64), "coverage_50": Figure(score=None, low=None, high=None)}
    score = Estimate(score=0.41, low=0.4, high=0.42, rows=900, more=more)
    text = drawn(one, ProductionRecords(cohorts=[Cohort(date(2017, 11, 6), 1, 2200, 1100, score)]))
    assert re.search(r"0\.41.*Hit rate<.*>0\.610? \[0\.580?, 0\.640?\]", text, re.S)
    assert "Items for 50 users" not in text


def test_scores_of_monitoring_runs_become_a_timeline_with_alarms_and_retrainings(one):
    chart = production_section.build("redeem", ProductionRecords(RUNS, [begun(RUNS[1], None)]), None).timeline
    assert all(name in chart.svg for name in ("expected", "estimated", "realised", "alarm", "ROC AUC"))
    alone = production_section.build("redeem", ProductionRecords(RUNS[-1:]), None).timeline
    assert ['stroke-width="5"' in each.svg for each in (chart, alone)] == [False, True]
    assert 'stroke-dasharray="4,3"' in alone.svg
    bare = [each.model_copy(update={"window": each.window.model_copy(update={"performance": None})}) for each in RUNS]
    assert production_section.build("redeem", ProductionRecords(bare), None).timeline is None
    assert "it has not finished" in drawn(one, ProductionRecords(RUNS, [begun(RUNS[1], None)]))


def test_a_backtest_is_shown_with_its_recommendation_and_a_damaged_one_is_left_out(one):
    found = {"metric": "roc_auc", "greater_is_better": True, "first": "2017-04-02", "last": "2017-04-09", "step_days": 7}
    blank = {"score": 0.87, "low": 0.85, "high": 0.89, "rows": 2, "reason": None}
    points = [{"day": day, "score": 0.87, "low": 0.85, "high": 0.89} for day in ("2017-04-02", "2017-04-09")]
    outcome = {"quality": blank, "gain": blank, "promoted": 1, "alarms": 3, "false_alarms": 2, "points": points}
    outcome |= {"steps": [{"promoted": None}, {"promoted": True}], "gain_per_cpu_minute": 0.002}
    outcomes = [
        {**outcome, "policy": name, "retrainings": n, "cpu_minutes": 1.4 * n} for n, name in enumerate(("never", "drift"))
    ]
    whole = {
        **found,
        "outcomes": outcomes,
        "cost": "learning alone",
        "recommendation": {"policy": "drift", "reason": "the best"},
    }
    path = one[1].report("redeem") / "backtest" / "backtest.json"
    write(path, whole)
    text = drawn(one, ProductionRecords())
    assert "Recommended: drift, the best." in text
    assert re.search(r"drift <span[^>]*>recommended</span>.*0\.870 <span[^>]*>\[0\.850, 0\.890\]", text, re.S)
    write(path, {**whole, "outcomes": [{"policy": "never"}]})
    assert "Recommended: drift" not in drawn(one, ProductionRecords())
