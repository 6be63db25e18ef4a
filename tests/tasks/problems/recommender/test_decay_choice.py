"""Planted shops, where what was bought last week decides, or all year: each source looks back as far as it should."""

from collections.abc import Iterable
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender.candidate_sources import Decay
from evergreen.tasks.problems.recommender.decay_choice import (
    CO_VISITATION_DAYS,
    DECAYS,
    SECOND_DECAYS,
    SEGMENT_DAYS,
    WINDOWS,
    Case,
    choose_co_visitation_days,
    choose_decay,
    choose_popularity_days,
    choose_second_decay,
    choose_segment_days,
)
from evergreen.tasks.problems.recommender.user_histories import Histories, distinct

Line = tuple[int, str, str, int]
"""user, basket, item, day."""
CUT, LAST = 364, 392
USERS = 200


def frame(lines: Iterable[Line]) -> pl.DataFrame:
    found = pl.DataFrame(list(lines), schema=["user", "basket", "item", "day"], orient="row")
    return found.with_columns(pl.col("day").cast(pl.Int32).cast(pl.Date))


def case(lines: Iterable[Line]) -> Case:
    """What was bought after CUT judges what was known then."""
    histories = Histories.of(frame(lines))
    known, after = histories.until_positions(CUT), histories.between(CUT + 1, LAST)
    users = np.intersect1d(distinct(after.user), distinct(known.user))
    kept = np.isin(after.user, users)
    row = np.searchsorted(users, after.user[kept]).astype(np.int64)
    return Case(known, users, CUT, distinct(row * len(histories.items) + after.item[kept]))


def side(user: int) -> int:
    return user % 2


def news(draw: np.random.Generator) -> Iterable[Line]:
    """Ten new items a week for each half of the users; what came out in a week is bought in it and in the next one."""
    for user in range(USERS):
        for week in range(26, 57):
            for back in (0, 1):
                for item in draw.permutation(10)[:2]:
                    yield user, f"{user} {week}", f"{side(user)} of week {week - back} no {item}", 7 * week - 6 + user % 7


def seldom(draw: np.random.Generator) -> Iterable[Line]:
    """Thirty items are sold to each half of the users all year, three at a fair of two weeks; each buys once in four months."""
    for user in range(USERS):
        for day in range(user % 120, LAST, 120):
            for item in draw.choice(30, 3, replace=False):
                yield user, f"{user} {day}", f"{side(user)} no {item}", day
            for item in range(3):
                yield user, f"{user} {day}", f"{side(user)} fair {(day - 1) // 14} no {item}", day


def segment_days(lines: Iterable[Line]) -> int:
    judged = case(lines)
    halves = judged.known.users % 2
    category = np.zeros(len(judged.known.items), np.int64)
    return choose_segment_days([judged], 5, 1, category, lambda known, first: halves)


def test_segments_look_back_for_days_where_items_are_news_and_for_a_year_where_purchases_are_rare():
    draw = np.random.default_rng(0)
    assert segment_days(news(draw)) in (7, 28)
    assert segment_days(seldom(draw)) == 364


def test_segments_by_category_have_their_days_chosen_too():
    judged = case(news(np.random.default_rng(1)))
    category = np.array([int(item[0]) for item in judged.known.items.tolist()])
    assert choose_segment_days([judged], 5, 1, category, lambda known, first: None) in (7, 28)


def pairs(draw: np.random.Generator, change: int, every: int) -> Iterable[Line]:
    """Baskets of an item and its partner, which is another one after `change` days; each user buys once in `every` days.

    A quarter of the users takes the partner later, after the others have shown it.
    """
    partners = [draw.permutation(40) for _ in range(LAST // change + 2)]
    for user in range(USERS):
        for day in range(user % every, LAST, every):
            item = int(draw.integers(40))
            partner = f"partner {partners[(day + 14) // change][item]}"
            if user % 4:
                yield user, f"{user} {day}", f"item {item}", day
                yield user, f"{user} {day}", partner, day
            elif day + 14 > CUT and day <= CUT:
                yield user, f"{user} {day}", f"item {item}", day
                yield user, f"{user} {CUT + 1}", partner, CUT + 1


@pytest.mark.parametrize(("change", "every", "days"), [(28, 2, (3, 14)), (LAST + 1, 28, (182, 728))], ids=["news", "yearly"])
def test_co_visitation_forgets_baskets_where_partners_change_and_keeps_a_year_where_they_stay(change, every, days):
    judged = case(pairs(np.random.default_rng(2), change, every))
    assert choose_co_visitation_days([judged], 1, 1, 50, Decay(7.0)) in days


def test_a_handful_of_users_does_not_choose_how_far_co_visitation_looks_back():
    """Six users buy the partner: by them alone fourteen days look better, surely."""
    lines = [line for line in pairs(np.random.default_rng(2), 28, 2) if line[0] < 24]
    assert choose_co_visitation_days([case(lines)], 1, 1, 50, Decay(7.0)) == CO_VISITATION_DAYS[0]


def habits(draw: np.random.Generator, gap: int, lasting: bool) -> Iterable[Line]:
    """What each user buys `gap` days apart lasts, beside things he buys once, or ends after four times, beside staples."""
    for user in range(USERS):
        for day in range(user % 28, LAST, 28):
            for item in range(4 if lasting else 1):
                once = f"once {day} {item}" if lasting else f"staple {draw.integers(8)}"
                yield user, f"{user} {day}", f"{user} {once}", day
        for turn, day in enumerate(range(int(draw.integers(gap)), LAST, gap)):
            for item in range(4):
                yield user, f"{user} {day}", f"{user} {0 if lasting else (turn + user) // 4} no {item}", day


def test_the_second_decay_is_fast_where_habits_last_for_days_and_slow_where_they_last_for_a_year():
    draw = np.random.default_rng(3)
    quick = choose_second_decay([case(habits(draw, 5, False))], 4, Decay(90.0))
    assert quick.days <= 14 or quick.orders is not None
    slow = choose_second_decay([case(habits(draw, 90, True))], 4, Decay(90.0))
    assert slow == Decay(365.0)


def test_a_decay_in_orders_comes_with_the_best_half_life_in_days():
    lines = habits(np.random.default_rng(4), 5, False)
    chosen = choose_decay([case(lines)], 4)
    assert chosen.days in {each.days for each in DECAYS if each.orders is None and each.days <= 14}


def test_without_windows_the_usual_days_hold():
    assert choose_decay([], 10) == DECAYS[0]
    assert choose_second_decay([], 10, Decay()) == SECOND_DECAYS[0]
    assert choose_popularity_days([], 10) == WINDOWS[0]
    assert choose_segment_days([], 10, 5, np.zeros(0), lambda known, first: None) == SEGMENT_DAYS[0]
    assert choose_co_visitation_days([], 10, 5, 50, Decay()) == CO_VISITATION_DAYS[0]


def test_a_fitted_model_looks_back_as_far_as_its_shop_asks_for(tmp_path):
    sources = {"segment_popularity": True, "co_visitation": True, "ease": False, "tifu_knn": False}
    pipeline = {"k": 5, "sources": sources, "ranker_trees": 2, "candidates": 10}
    named = {"table": "lines", "user": "user", "item": "item", "basket": "basket", "min_users": 2, "horizon_days": 14}
    section = Recommend.model_validate({"question": "?", "features": named, "pipeline": pipeline})
    as_of, found = date(1970, 1, 1) + timedelta(days=LAST), {}
    for name, lines in {"news": news, "seldom": seldom}.items():
        folder = tmp_path / name
        folder.mkdir()
        table = frame(lines(np.random.default_rng(5))).rename({"day": "at"}).lazy()
        for part, rows in KIND.build({"lines": table}, {"lines": "at"}, section, as_of).items():
            rows.write_parquet(folder / f"{part}.parquet")
        data = KIND.load(folder, section)
        found[name] = KIND.fit(data, KIND.cutoffs(data), KIND.defaults("two_stage", section), section, 0)
    assert found["news"].settings.segment_days < found["seldom"].settings.segment_days
    assert found["news"].settings.co_visitation_days in CO_VISITATION_DAYS
