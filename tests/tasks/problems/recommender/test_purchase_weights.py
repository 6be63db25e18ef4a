"""A purchase counts by its quantity or rating, in each source, and no single line counts for everything."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender import purchase_weights
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories
from evergreen.tasks.problems.recommender.user_histories import Histories, to_day
from tests.tasks.problems.recommender.test_shop_shapes import AS_OF, DAYS, scores, section, table


def lines(*values: tuple[str, str, str, float | None]) -> pl.DataFrame:
    return pl.DataFrame(list(values), schema=["user", "basket", "item", "value"], orient="row").with_columns(when=pl.lit(1))


def weights(found: pl.DataFrame) -> list[float]:
    return [round(each, 2) for each in found["weight"].to_list()]


def test_a_quantity_counts_by_its_root_over_what_is_usual_for_the_item():
    found = purchase_weights.weigh(
        lines(*((f"u{n}", "b", "egg", value) for n, value in enumerate([6, 6, 24, 1e9, 0.001, 0, None]))),
        section(weight="n").features,
    )
    assert weights(found) == [1, 1, 2, 4, 0.25, 1, 1]


def test_one_basket_adds_up_and_a_return_is_left_out(caplog):
    given = lines(("u", "b", "egg", 2), ("u", "b", "egg", 2), ("u", "c", "egg", 4), ("u", "d", "egg", -4))
    found = purchase_weights.weigh(given, section(weight="n").features)
    assert found["basket"].to_list() == ["b", "c"]
    assert weights(found) == [1, 1]
    assert "1 lines with n below 0 are returns; they are left out" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"), [([1, 4, 4, 5, None], [0, 1, 1, 1.33, 1]), ([3, 3], [1, 1]), ([0, 1, 1], [0, 1, 1])]
)
def test_a_rating_counts_from_the_lowest_up(given, expected):
    rows = lines(*((f"u{n}", "b", "film", value) for n, value in enumerate(given)))
    assert weights(purchase_weights.weigh(rows, section(weight="stars", weight_as="rating").features)) == expected


@pytest.mark.parametrize(
    ("column", "says"),
    [("words", "features.weight = words: holds String, not numbers"), ("quantty", "features.weight = quantty: .*quantity")],
)
def test_a_weight_that_is_no_number_or_no_column_is_refused(column, says):
    with pytest.raises(ParamsError, match=says):
        purchase_weights.value(section(weight=column).features, {"words": pl.String(), "quantity": pl.Int64()})


def weighed(rows: pl.DataFrame, values: list[float], name: str) -> pl.DataFrame:
    return rows.with_columns(pl.Series(name, values))


def test_what_is_bought_in_large_quantities_comes_next_when_quantity_weighs(tmp_path):
    draw, rows, values = np.random.default_rng(0), [], []
    for user in range(80):  # one half of a user's items is bought in fours, and only those once more at the end
        items = [f"i{each}" for each in draw.permutation(60)[:20]]
        for day in range(0, DAYS - 28, 20):
            rows += [(f"u{user}", f"b{user} {day}", item, float(day)) for item in items]
            values += [4.0] * 10 + [1.0] * 10
        rows += [(f"u{user}", f"b{user} last", item, DAYS - 10.0) for item in items[:10]]
        values += [4.0] * 10
    # the other half of the users makes 1 and 4 equally usual, and buys nothing at the end
    rows += [(f"o{n}", f"o{n}", f"i{n % 60}", 1.0) for n in range(600)]
    values += [1.0 + n % 2 for n in range(600)]
    shop = weighed(table(rows), values, "pieces")
    models = ("frequency", "tifu_knn", "item_knn", "ease")
    plain = scores(shop, tmp_path / "plain", *models)
    found = scores(shop, tmp_path / "weighed", *models, weight="pieces")
    for model in models:
        assert found[model][0] > plain[model][0] + 0.1, model


def test_low_ratings_are_seen_and_no_success(tmp_path):
    draw, rows, values = np.random.default_rng(1), [], []
    for user in range(240):  # likes films of his group, and rates as many others with one star
        mine = [f"g{user % 4} {n}" for n in draw.permutation(20)[:8]]
        bad = [f"g{(user + 1 + draw.integers(3)) % 4} {n}" for n in draw.permutation(20)[:8]]
        day = float(draw.uniform(0, DAYS - 30))
        for step, film in enumerate(draw.permutation([*mine, *bad]).tolist()):
            rows.append((f"u{user}", f"b{user}", film, day + step))
            values.append(float(draw.integers(4, 6)) if film in mine else 1.0)
    shop = weighed(table(rows), values, "stars")
    kept = {"judge_by": "last_lines", "held_out": 4}
    plain = scores(shop, tmp_path / "plain", "item_knn", **kept)
    found = scores(shop, tmp_path / "rated", "item_knn", "popularity", weight="stars", weight_as="rating", **kept)
    assert found["item_knn"][1] > plain["item_knn"][1] + 0.05
    assert found["item_knn"][1] > found["popularity"][1] + 0.1
    data = KIND.load(tmp_path / "rated", section(weight="stars", weight_as="rating", **kept))
    cutoff = KIND.cutoffs(data)[-1]
    row, item = data.targets(cutoff).entries(False)
    users, films = data.histories.users[data.targets(cutoff).users[row]], data.histories.items[item]
    assert all(film[1] == str(int(user[1:]) % 4) for user, film in zip(users, films, strict=True))


def test_one_enormous_quantity_changes_no_other_users_list(tmp_path):
    draw, rows = np.random.default_rng(2), []
    for user in range(40):
        rows += [(f"u{user}", f"b{user} {day}", f"i{draw.integers(12)}", float(day)) for day in range(0, DAYS, 7)]
    usual = [float(each) for each in draw.integers(1, 4, len(rows))]
    shops = [weighed(table(rows), [usual[0] * times, *usual[1:]], "n") for times in (1, 1e12)]
    found = [lists(shop, tmp_path / str(place)) for place, shop in enumerate(shops)]
    assert [user for user in found[0] if found[0][user] != found[1][user]] in ([], ["u0"])


def lists(shop: pl.DataFrame, folder: Path) -> dict[str, list[str]]:
    known = section(weight="n")
    folder.mkdir()
    for name, frame in KIND.build({"lines": shop.lazy()}, {"lines": "at"}, known, AS_OF).items():
        frame.write_parquet(folder / f"{name}.parquet")
    data = KIND.load(folder, known)
    fold = KIND.splits(data, known).tests[-1]
    model = KIND.fit(data, fold.train, KIND.defaults("frequency", known), known, 0)
    predictions = KIND.predict(model, data, fold.test, known)
    return dict(zip(predictions["entity"].to_list(), predictions["items"].to_list(), strict=True))


def test_weights_stay_with_their_lines_in_every_part_of_the_histories():
    frame = pl.DataFrame({"user": [1, 1, 2, 3], "basket": [1, 2, 3, 4], "item": [5, 6, 5, 7], "weight": [1.5, 2.0, 0.5, 0.0]})
    histories = Histories.of(frame.with_columns(day=pl.Series([AS_OF] * 4)))
    day = to_day(AS_OF)
    for part in (
        histories,
        histories.until(day),
        histories.of_users(np.array([0, 1, 2])),
        histories.and_then(histories.frame()),
    ):
        assert part.frame().sort("basket")["weight"].to_list() == [1.5, 2.0, 0.5, 0.0]
    newer = pl.DataFrame({"user": [2, 9], "basket": [9, 9], "item": [6, 6], "day": [AS_OF] * 2})
    online = OnlineHistories.of(histories).and_then(newer)
    row, column, _, weight, _ = online.lines(np.arange(4), histories.items)
    assert weight is not None
    assert dict(zip(zip(row.tolist(), column.tolist(), strict=True), weight.tolist(), strict=True))[1, 1] == 1
    assert weight.sum() == 6
    dense = histories.matrix(histories.items)
    assert dense.nnz == 3
    assert all(first <= last for first, last in pairwise(dense.indptr))
