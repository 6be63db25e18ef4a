"""Items that nobody has bought yet are placed by their attributes: planted tastes, hidden items, a whole training."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender import item_catalogue
from evergreen.tasks.problems.recommender.hidden_items import judge_hidden
from evergreen.tasks.problems.recommender.item_contents import Contents, of_items
from evergreen.tasks.problems.recommender.list_builder import ListBuilder
from evergreen.tasks.problems.recommender.list_request import Request
from evergreen.tasks.problems.recommender.ranker_features import FEATURES as RANKER
from evergreen.tasks.problems.recommender.user_histories import to_day
from tests.tasks.problems.recommender.test_shop_shapes import AS_OF, DAYS, table

COLOURS, PER_COLOUR, LATE = 4, 25, DAYS - 60
"""Items of a colour: the last five are sold only from the day LATE on, and of those the last one never."""
FEATURES = {
    "table": "lines",
    "user": "who",
    "item": "what",
    "basket": "till",
    "min_users": 5,
    "horizon_days": 28,
    "items": "goods",
    "category": "shelf",
    "name": "called",
    "text": "about",
    "price": "price",
}


def goods() -> pl.DataFrame:
    """Shelves say nothing; the words of the text tell the colour."""
    rows = [(f"c{colour} no {number:02d}", colour, number) for colour in range(COLOURS) for number in range(PER_COLOUR)]
    return pl.DataFrame(
        {
            "what": [what for what, _, _ in rows],
            "shelf": [f"shelf {number % 3}" for _, _, number in rows],
            "called": [f"Good {number}" for _, _, number in rows],
            "about": [f"painted in COLOUR{colour}, made by hand" for _, colour, _ in rows],
            "price": [float(number) for _, _, number in rows],
        }
    )


def purchases(seed: int = 0) -> pl.DataFrame:
    """Each user buys goods of his colour, now and then one of another; new goods as often as others, once they are sold."""
    draw, rows = np.random.default_rng(seed), []
    for user in range(150):
        for day in range(int(draw.integers(7)), DAYS, 7):
            for _ in range(2):
                colour = user % COLOURS if draw.random() < 0.9 else int(draw.integers(COLOURS))
                number = int(draw.integers(PER_COLOUR - 1 if day >= LATE else PER_COLOUR - 5))
                rows.append((f"u{user:03d}", f"b{user} {day}", f"c{colour} no {number:02d}", float(day)))
    return table(rows)


def shop(content: bool) -> Recommend:
    pipeline = {"sources": {"content": content}, "candidates": 30, "ranker_trees": 30}
    known = {"question": "What next?", "features": FEATURES, "pipeline": pipeline, "evaluate": {"windows": 1}}
    return Recommend.model_validate(known)


def trained(folder: Path, content: bool):
    known = shop(content)
    tables = {"lines": purchases().lazy(), "goods": goods().lazy()}
    for name, frame in KIND.build(tables, {"lines": "at", "goods": None}, known, AS_OF).items():
        frame.write_parquet(folder / f"{name}.parquet")
    data = KIND.load(folder, known)
    test = AS_OF - timedelta(days=28)
    cutoffs = [test - timedelta(days=28 * back) for back in (3, 2, 1)]
    model = KIND.fit(data, cutoffs, KIND.defaults("two_stage", known), known, 0)
    return known, data, model, test


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    return trained(tmp_path_factory.mktemp("content"), True)


def test_an_item_that_nobody_bought_is_a_candidate_of_those_whom_its_words_suit(fitted):
    _, data, model, test = fitted
    learned, settings = model.learned_, model.settings
    assert model.catalogue_.tolist() == sorted(goods()["what"])
    found = learned.propose(data.before(test), np.arange(150), to_day(test), settings)
    items = learned.catalogue[found.item]
    never = np.char.endswith(items, f"no {PER_COLOUR - 1:02d}")
    assert set(items[never]) == {f"c{colour} no {PER_COLOUR - 1:02d}" for colour in range(COLOURS)}
    right = [
        int(item[1]) == int(data.before(test).users[row][1:]) % COLOURS for row, item in zip(found.row, items, strict=True)
    ]
    score = found.features[:, RANKER.index("content")]
    assert np.median(score[never & right]) > 2 * np.median(score[never & ~np.array(right)])


def test_hidden_items_are_found_by_their_attributes_and_by_nothing_else(fitted):
    _, data, model, test = fitted
    found = {row["order"]: row for row in judge_hidden(model, data, test, 3).iter_rows(named=True)}
    others = [found["popularity of the category"], found["random"]]
    assert found["attributes"]["low"] > max(each["high"] for each in others)
    assert found["attributes"]["hit_rate"] > max(each["hit_rate"] for each in others)
    assert found["attributes"]["users"] >= 20


def test_words_that_say_nothing_place_no_item_better_than_chance(fitted):
    _, data, model, test = fitted
    shuffled = data.items_table.with_columns(text=data.items_table["text"].sample(fraction=1, shuffle=True, seed=3))
    found = judge_hidden(model, replace(data, items_table=shuffled), test, 3)
    rows = {row["order"]: row for row in found.iter_rows(named=True)}
    assert rows["attributes"]["low"] < rows["random"]["high"]


def test_the_lists_of_a_training_with_attributes_show_new_items_and_say_why(fitted, tmp_path):
    known, data, model, _ = fitted
    builder = ListBuilder.of(model, data, known)
    asked = builder.recommend(Request(users=tuple(f"u{user:03d}" for user in range(40)), k=25, show="discover"))
    explained = [text for text, source in zip(asked.explanation, asked.source, strict=True) if source == "content"]
    assert explained
    assert set(explained) == {"a new product like those that this customer buys"}
    plain_known, plain_data, plain, test = trained(tmp_path, False)
    with_content, without = (
        KIND.predict(each, read, test, section)["ndcg_novel"].mean()
        for each, read, section in ((model, data, known), (plain, plain_data, plain_known))
    )
    assert with_content > without - 0.01


def test_a_user_without_a_word_and_an_item_without_one_have_no_place():
    table = pl.DataFrame({"item": ["a", "b", "c"], "category": ["x", "x", None], "name": ["red", "red", None]})
    words = of_items(table, np.array(["a", "b", "c", "d"]))
    assert np.diff(words.indptr).tolist() == [0, 0, 0, 0]  # a word of more than half of the items says nothing
    table = pl.DataFrame({"item": ["a", "b", "c", "e", "f", "g"], "category": ["x", "x", None, "y", "z", "z"]})
    contents = Contents.learn(table, np.array([*"abcdefg"]), np.array([1, 2, 3, 4]))
    assert contents.new.tolist() == [1]  # the words of e are its own
    bought = np.zeros((2, 7), np.float32)
    bought[0, 0] = 3
    assert contents.score(sparse.csr_array(bought)).round(3).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("key", "column", "says"),
    [
        ("price", "shelf", "features.price = shelf: holds String, not numbers"),
        ("text", "abuot", "features.text = abuot: .*about"),
    ],
)
def test_attributes_that_are_none_are_refused(key, column, says):
    section = shop(True).features.model_copy(update={key: column})
    with pytest.raises(ParamsError, match=says):
        item_catalogue.items({"goods": goods().lazy()}, section)


def test_attributes_without_a_table_of_items_are_refused():
    section = shop(True).features.model_copy(update={"items": None, "category": None, "name": None, "text": None})
    with pytest.raises(ParamsError, match=r"features\.price = price: needs a table of items; give features\.items"):
        item_catalogue.items({}, section)
