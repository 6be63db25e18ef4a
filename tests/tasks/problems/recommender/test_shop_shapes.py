"""Shops of many shapes, small and with planted answers: the ladder finds the rung that suits each."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.config.params import Evaluate, Recommend, Tune
from evergreen.tasks.onboarding.shop_shape import find_shape
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender.evaluation_windows import OwnWindows
from evergreen.tasks.problems.recommender.user_histories import to_day

FIRST = datetime(2024, 1, 1)
DAYS = 168
AS_OF = (FIRST + timedelta(days=DAYS - 1)).date()
GROUPS, PER_GROUP = 4, 15
Line = tuple[str, str, str, float]
"""user, basket, item, days after FIRST."""


def table(rows: Iterable[Line]) -> pl.DataFrame:
    frame = pl.DataFrame(list(rows), schema=["who", "till", "what", "after"], orient="row")
    return frame.select(
        "who", "till", "what", at=pl.lit(FIRST) + pl.duration(microseconds=(pl.col("after") * 8.64e10).cast(pl.Int64))
    )


def section(**features: Any) -> Recommend:
    named = {"table": "lines", "user": "who", "item": "what", "basket": "till", "min_users": 5, "horizon_days": 28}
    return Recommend.model_validate({"question": "What next?", "features": named | features, "evaluate": {"windows": 1}})


def scores(rows: pl.DataFrame, folder: Path, *models: str, **features: Any) -> dict[str, tuple[float, float, int]]:
    """Model -> NDCG of all and of new items, and number of users judged, in the last test window."""
    known = section(**features)
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in KIND.build({"lines": rows.lazy()}, {"lines": "at"}, known, AS_OF).items():
        frame.write_parquet(folder / f"{name}.parquet")
    data = KIND.load(folder, known)
    fold = KIND.splits(data, known).tests[-1]
    found = {}
    for model in models:
        fitted = KIND.fit(data, fold.train, KIND.defaults(model, known), known, 0)
        lists = KIND.predict(fitted, data, fold.test, known)
        found[model] = *(float(lists[name].mean() or 0) for name in ("ndcg", "ndcg_novel")), lists.height
    return found


def group(item: int) -> str:
    return f"g{item % GROUPS} no {item // GROUPS}"


def fans(draw: np.random.Generator, users: int, **lines: int) -> Iterable[Line]:
    """Users who come once, each on a day of his own, and take so many different items of one group."""
    for user in range(users):
        day = float(draw.uniform(0, DAYS - 90))
        chosen = draw.permutation(PER_GROUP)[: lines.get("lines", 8)]
        for step, item in enumerate(chosen):
            yield f"u{user}", f"b{user}", group(int(item) * GROUPS + user % GROUPS), day + step / 1000


def regulars(draw: np.random.Generator, users: int, every: float = 7) -> Iterable[Line]:
    """Users who buy four items of their own, which nobody else buys, and a popular one each time."""
    for user in range(users):
        for turn, day in enumerate(np.arange(draw.uniform(0, every), DAYS, every)):
            for item in range(4):
                yield f"u{user}", f"b{user} {turn}", f"of {user} no {item}", float(day)
            yield f"u{user}", f"b{user} {turn}", f"popular {draw.integers(12)}", float(day)


@pytest.mark.parametrize(("users", "every"), [(200, 7), (60, 28)], ids=["few shoppers", "subscriptions"])
def test_what_only_one_user_buys_is_in_his_list(users, every, tmp_path):
    found = scores(table(regulars(np.random.default_rng(0), users, every)), tmp_path, "popularity", "frequency", "tifu_knn")
    assert min(found["frequency"][0], found["tifu_knn"][0]) > 0.75
    assert found["popularity"][0] < 0.5
    assert found["frequency"][2] == users


@pytest.mark.parametrize("name", ["film club", "visitors without an account"])
def test_users_who_come_once_are_judged_by_their_last_lines_and_a_rung_beats_popularity(name, tmp_path):
    rows = table(fans(np.random.default_rng(1), 300))
    shape = find_shape(rows.lazy(), "who", "what", "till", "at")
    assert (shape.judge_by, shape.discover) == ("last_lines", True)
    assert any("lists.show = discover" in note for note in shape.notes)
    found = scores(rows, tmp_path, "popularity", "item_knn", "ease", judge_by="last_lines")
    assert found["popularity"][2] >= 25
    assert min(found["item_knn"][1], found["ease"][1]) > found["popularity"][1] + 0.15


def test_a_shop_of_regulars_is_judged_by_the_calendar_and_one_of_rare_visits_by_last_orders():
    draw = np.random.default_rng(2)
    usual = find_shape(table(regulars(draw, 60)).lazy(), "who", "what", "till", "at")
    assert (usual.judge_by, usual.discover, usual.traits.notes) == ("calendar", False, usual.notes)
    seldom = [
        (f"u{user}", f"b{user} {turn}", f"i{user % 7}", user % 20 + 30.0 * turn) for user in range(60) for turn in range(2)
    ]
    found = find_shape(table(seldom).lazy(), "who", "what", "till", "at")
    assert found.judge_by == "last_orders"
    assert "60 have two orders or more" in found.why


@pytest.mark.parametrize(("days", "plan"), [(168, (28, 3)), (150, (28, 2)), (100, (14, 3)), (60, (7, 3)), (30, (7, 1))])
def test_a_short_history_gets_shorter_or_fewer_windows_that_training_accepts(days, plan, tmp_path):
    lines = [
        (f"u{user}", f"b{user} {day}", f"i{user % 7}", float(day)) for user in range(30) for day in range(user % 3, days, 3)
    ]
    end = (FIRST + timedelta(days=days - 1)).date()
    rows = table(lines)
    shape = find_shape(rows.lazy(), "who", "what", "till", "at")
    assert (shape.horizon_days, shape.windows) == plan
    assert shape.notes[: -len(shape.traits.notes)] == (
        () if plan == (28, 3) else (f"the history is short: {plan[1]} windows of {plan[0]} days judge models, not 3 of 28",)
    )
    known = section(horizon_days=plan[0]).model_copy(update={"evaluate": Evaluate(windows=plan[1]), "tune": Tune(folds=1)})
    for name, frame in KIND.build({"lines": rows.lazy()}, {"lines": "at"}, known, end).items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    assert len(KIND.splits(KIND.load(tmp_path, known), known).tests) == plan[1]


def test_nothing_after_a_cutoff_is_learned_and_every_user_is_judged_once_by_what_came_last(tmp_path):
    rows = table(fans(np.random.default_rng(3), 120))
    scores(rows, tmp_path, judge_by="last_lines", held_out=2)
    data = KIND.load(tmp_path, section(judge_by="last_lines", held_out=2))
    assert isinstance(data.windows, OwnWindows)
    judged = []
    for cutoff in KIND.cutoffs(data):
        after, before = data.windows.after(cutoff), data.windows.before(cutoff)
        assert after.day.min() > to_day(cutoff) >= before.day.max()
        assert after.day.max() <= data.windows.end(cutoff)
        judged += np.unique(after.user).tolist()
        for user in np.unique(after.user).tolist():
            mine = rows.filter(pl.col("who") == data.histories.users[user]).sort("at")["what"].to_list()
            assert set(data.histories.items[after.item[after.user == user]]) == set(mine[-2:])
            assert set(data.histories.items[before.item[before.user == user]]) == set(mine[:-2])
    assert len(judged) == len(set(judged)) > 80


@pytest.mark.parametrize("lifetime", [3, 28], ids=["news", "seasons"])
def test_where_the_catalogue_turns_over_recent_popularity_is_better(lifetime, tmp_path):
    draw = np.random.default_rng(4)
    rows = [
        (f"u{user}", f"b{user} {day}", f"i{day // lifetime} {draw.integers(10)}", float(day))
        for user in range(80)
        for day in draw.permutation(DAYS)[:40].tolist()
    ]
    found = scores(table(rows), tmp_path, "popularity", "recent_popularity", horizon_days=max(lifetime // 2, 1), min_users=1)
    assert found["recent_popularity"][0] > found["popularity"][0] + 0.1


def bundles(draw: np.random.Generator) -> Iterable[Line]:
    """Forty pairs of items that are always bought together, and users who buy each once or never."""
    for user in range(150):
        for turn, day in enumerate(np.sort(draw.uniform(0, DAYS, 6))):
            pair = int(draw.integers(40))
            for half in range(2) if day < DAYS - 28 or turn % 2 else range(1):
                yield f"u{user}", f"b{user} {turn}", f"pair {pair} {half}", float(day)
            if user % 2:  # the other half comes with the next order
                yield f"u{user}", f"b{user} {turn} more", f"alone {pair}", float(min(day + 30, DAYS - 1))


def odd_one(kind: str, draw: np.random.Generator) -> Iterable[Line]:
    """A reseller who buys half of everything each week, or robots that look at everything at random."""
    accounts = 1 if kind == "reseller" else 5
    for account in range(accounts):
        for day in range(0, DAYS, 7):
            for item in draw.permutation(GROUPS * PER_GROUP)[: GROUPS * PER_GROUP // 2].tolist():
                yield f"{kind} {account}", f"{kind} {account} {day}", group(item), float(day)


@pytest.mark.parametrize("kind", ["reseller", "robots"])
def test_one_buyer_of_everything_spoils_nobody_elses_list(kind, tmp_path):
    draw = np.random.default_rng(5)
    rows = [
        (f"u{user}", f"b{user} {turn}", group(int(draw.integers(PER_GROUP)) * GROUPS + user % GROUPS), float(day))
        for user in range(150)
        for turn, day in enumerate(np.sort(draw.uniform(0, DAYS, 8)))
    ]
    clean = scores(table(rows), tmp_path / "clean", "item_knn", "ease", "tifu_knn")
    odd = scores(table([*rows, *odd_one(kind, draw)]), tmp_path / "odd", "item_knn", "ease", "tifu_knn")
    for model, (_, novel, _) in clean.items():
        assert odd[model][1] > novel - 0.08, model


def test_what_comes_together_is_found_by_item_knn(tmp_path):
    found = scores(table(bundles(np.random.default_rng(6))), tmp_path, "popularity", "item_knn", min_users=2)
    assert found["item_knn"][1] > found["popularity"][1] + 0.1


def test_returns_are_no_purchases(tmp_path):
    rows = table(regulars(np.random.default_rng(7), 20)).with_columns(quantity=pl.lit(1))
    back = rows.with_columns(quantity=pl.lit(-1), what=pl.lit("returned"), till=pl.col("till") + " back")
    both = KIND.build({"lines": pl.concat([rows, back]).lazy()}, {"lines": "at"}, section(where="quantity >= 0"), AS_OF)
    once = KIND.build({"lines": rows.lazy()}, {"lines": "at"}, section(), AS_OF)
    assert both["lines"].equals(once["lines"])


def test_last_orders_need_dates_and_not_order_numbers():
    named = {"table": "lines", "user": "who", "item": "what", "basket": "till", "order": "till", "judge_by": "last_orders"}
    with pytest.raises(ValueError, match="every user's last orders are the windows; leave judge_by out"):
        Recommend.model_validate({"question": "What next?", "features": named})
