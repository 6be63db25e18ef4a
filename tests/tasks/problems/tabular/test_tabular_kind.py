"""Plain tables of every kind: mixed columns, what was never seen, blends, and the finish of probabilities."""

import json
import warnings
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from evergreen.tasks import problems, train, tune
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.paths import HELD_OUT, JUDGED, MODEL, Layout
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Finishing
from evergreen.tasks.problems.tabular import tabular_kind as tabular
from evergreen.tasks.problems.tabular.calibration import Calibrated, mapped
from evergreen.tasks.problems.tabular.model_families import BLEND

COLUMNS = {"size": "number", "empty": "number", "colour": "category", "street": "category", "built": "date", "note": "text"}
ORDER = ("baseline", "linear", "trees", "boosting", "network", "ensemble")


def houses(count=400, seed=0):
    """Houses: what they cost depends on size, street, year and a word of the note; some values are missing."""
    draw = np.random.default_rng(seed)
    size, year, street = draw.gamma(4, 30, count), draw.integers(1950, 2020, count), draw.integers(0, 40, count)
    lovely = draw.random(count) < 0.4
    worth = np.log(size) + 0.01 * (year - 1950) + 0.02 * street + 0.5 * lovely + draw.normal(0, 0.1, count)
    table = pl.DataFrame(
        {
            "size": size,
            "empty": pl.Series([None] * count, dtype=pl.Float64),
            "colour": draw.choice(["red", "green", "blue"], count),
            "street": [f"street {each}" for each in street],
            "built": [f"{each}-05-01" for each in year],
            "note": [f"a {'lovely' if each else 'plain'} house number {place % 7}" for place, each in enumerate(lovely)],
            "price": np.exp(worth),
            "dear": np.where(worth > np.quantile(worth, 0.8), "yes", "no"),
            "class": np.array(list("abcdefg"))[np.clip(((worth - worth.mean()) * 1.6 + 3).round().astype(int), 0, 6)],
        }
    ).with_columns(pl.col("built").str.to_datetime())
    gone = draw.random((count, 3)) < 0.1
    return table.with_columns(
        pl.when(pl.Series(gone[:, place])).then(None).otherwise(pl.col(name)).alias(name)
        for place, name in enumerate(("size", "colour", "note"))
    )


def section(target, columns=None, **more):
    features = {"table": "houses", "target": target, "columns": columns or COLUMNS, **more.pop("features", {})}
    return Tabular.model_validate({"question": "What is it worth?", "features": features, **more})


def loaded(folder, kind, chosen, frame):
    kind.build({"houses": frame.lazy()}, {}, chosen, None)["rows"].write_parquet(folder / "rows.parquet")
    return kind.load(folder, chosen)


def learned(data, kind, chosen, config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold = kind.splits(data, chosen).tests[0]
        model = kind.fit(data, fold.train, config, chosen, 0)
        return model, kind.predict(model, data, fold.test, chosen)


ASKED = [
    ("classification", "dear", 0.8),
    ("classification", "class", 0.75),
    ("regression", "price", 0.55),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "floor"), ASKED)
def test_every_model_learns_from_mixed_columns_and_survives_saving(name, target, floor, tmp_path):
    kind, chosen = problems.kind(name), section(target)
    data = loaded(tmp_path, kind, chosen, houses())
    strange = data.features.head(3).assign(colour="never seen", street=None, built=None, note="?", size=None)
    for config in (*(kind.defaults(model, chosen) for model in kind.space(chosen)), blend(kind, chosen)):
        model, said = learned(data, kind, chosen, config)
        skops_models.save(model, tmp_path / "model.skops")
        assert kind.predict(skops_models.load(tmp_path / "model.skops"), data, "test", chosen).equals(said)
        columns = kind.predict_rows(model, strange).values()
        assert all(np.isfinite(column).all() for column in columns if column.dtype.kind == "f")
        scores = kind.score(said, chosen)
        reached = scores["roc_auc"] if name == "classification" else scores["r2"]
        assert reached >= (floor if config["model"] != kind.baseline else -0.2), config["model"]
        found = kind.importance(model)
        assert not found or (set(found) == set(COLUMNS) and sum(found.values()) == pytest.approx(1))


def blend(kind, chosen):
    members = [kind.defaults(model, chosen) for model in kind.space(chosen) if model != kind.baseline]
    members += [each for each in kind.portfolio(chosen) if each.get("encode_high") == "native"][:1]
    return {"model": BLEND, "members": members, "weights": [2, *[1] * (len(members) - 1)]}


@pytest.mark.parametrize(("name", "target", "floor"), ASKED[1:])
def test_a_blend_says_the_weighted_mean_of_what_its_members_say(name, target, floor, tmp_path):
    kind, chosen = problems.kind(name), section(target)
    data = loaded(tmp_path, kind, chosen, houses())
    whole = blend(kind, chosen)
    _, said = learned(data, kind, chosen, whole)
    alone = [learned(data, kind, chosen, each)[1] for each in whole["members"]]
    for column in (each for each in said.columns if each.startswith("pr") and said[each].dtype == pl.Float64):
        mean = np.average([each[column].to_numpy() for each in alone], axis=0, weights=whole["weights"])
        np.testing.assert_allclose(said[column].to_numpy(), mean)


@pytest.mark.parametrize("name", ["classification", "regression", "clustering"])
def test_stages_go_from_simple_to_complex_and_name_every_model(name):
    kind, chosen = problems.kind(name), section(None if name == "clustering" else "price")
    stages = kind.stages(chosen)
    assert [each for each in stages if each != BLEND] == list(kind.space(chosen))
    places = [ORDER.index(stage) for stage in stages.values()]
    assert all(one <= two for one, two in pairwise(places))


def test_what_params_say_of_a_choice_holds_for_every_model():
    kind = problems.kind("regression")
    chosen = section("price", pipeline={"spline_knots": 0, "target_log": True, "encode": "onehot"})
    for model, ranges in kind.space(chosen).items():
        assert not {"spline_knots", "target_log", "encode"} & set(ranges), model
        assert not {"spline_knots", "target_log", "encode"} & set(kind.defaults(model, chosen)), model
    assert {"spline_knots", "target_log"} <= set(kind.space(section("price"))["ridge"])


def test_a_logarithm_learns_amounts_that_differ_by_factors_better(tmp_path):
    kind, scores = problems.kind("regression"), {}
    for log in (False, True):
        chosen = section("price", pipeline={"target_log": log})
        data = loaded(tmp_path, kind, chosen, houses())
        _, said = learned(data, kind, chosen, kind.defaults("ridge", chosen))
        scores[log] = kind.score(said, chosen)["rmse"]
        assert said["prediction"].mean() == pytest.approx(said["label"].mean(), rel=0.15)
    assert scores[True] < scores[False]


def test_a_logarithm_of_amounts_below_zero_too_answers_within_twice_what_was_seen(tmp_path):
    kind, chosen = problems.kind("regression"), section("price", pipeline={"target_log": True})
    frame = houses().with_columns(price=pl.col("price") - pl.col("price").mean())
    data = loaded(tmp_path, kind, chosen, frame)
    model, _ = learned(data, kind, chosen, kind.defaults("ridge", chosen))
    far = data.features.head(2).assign(size=[1e12, -1e12])
    answers = kind.predict_rows(model, far)["prediction"]
    assert (answers <= 2 * frame["price"].max()).all()
    assert (answers >= 2 * frame["price"].min()).all()


def test_the_positive_class_is_the_one_that_params_name(tmp_path):
    kind = problems.kind("classification")
    scores = {}
    for positive in ("yes", "no"):
        chosen = section("dear", features={"positive_class": positive})
        data = loaded(tmp_path, kind, chosen, houses())
        model, said = learned(data, kind, chosen, kind.defaults("logistic", chosen))
        assert [name for name in said.columns if name.startswith("prob")][-1] == f"probability_{positive}"
        assert list(kind.predict_rows(model, data.features.head(2)))[-1] == f"probability_{positive}"
        share = (data.target.filter(~data.parts.masks["test"]) == positive).mean()
        assert said["threshold"][0] == pytest.approx(share)
        scores[positive] = kind.score(said, chosen)
    assert scores["yes"]["roc_auc"] == pytest.approx(scores["no"]["roc_auc"])
    assert scores["no"]["recall"] != scores["yes"]["recall"]


def test_a_positive_class_that_is_none_is_refused_with_the_nearest(tmp_path):
    kind, chosen = problems.kind("classification"), section("dear", features={"positive_class": "yess"})
    data = loaded(tmp_path, kind, chosen, houses())
    with pytest.raises(ParamsError, match=r"features\.positive_class = yess: no such class; did you mean yes\?"):
        learned(data, kind, chosen, kind.defaults("prior", chosen))


def test_a_class_that_was_not_learned_has_a_column_and_no_chance(tmp_path):
    kind, chosen = problems.kind("classification"), section("class", {"size": "number"}, tune={"folds": 3, "repeats": 1})
    frame = houses().with_columns(pl.when(pl.int_range(400) == 8).then(pl.lit("tiny")).otherwise("class").alias("class"))
    data = loaded(tmp_path, kind, chosen, frame)
    columns = set()
    for fold in kind.splits(data, chosen).folds:
        model = kind.fit(data, fold.train, kind.defaults("logistic", chosen), chosen, 0)
        said = kind.predict(model, data, fold.test, chosen)
        columns.add(tuple(sorted(said.columns)))
        assert np.isfinite(kind.score(said, chosen)["log_loss"])
        if "tiny" not in model.classes_:
            assert said["probability_tiny"].to_list() == [0.0] * said.height
    assert len(columns) == 1


@pytest.mark.parametrize("constant", [True, False])
def test_features_that_tell_nothing_give_a_model_no_worse_than_chance_and_no_warning(constant, tmp_path):
    kind, chosen = problems.kind("classification"), section("dear", {"size": "number", "colour": "category"})
    frame = houses()
    if constant:
        frame = frame.with_columns(size=pl.lit(3.0), colour=pl.lit("red"))
    else:
        frame = frame.with_columns(size=pl.lit(None, pl.Float64), colour=pl.lit(None, pl.String))
    data = loaded(tmp_path, kind, chosen, frame)
    for model in kind.space(chosen):
        _, said = learned(data, kind, chosen, kind.defaults(model, chosen))
        assert kind.score(said, chosen)["roc_auc"] == 0.5, model


def test_a_target_with_one_value_is_refused(tmp_path):
    kind, chosen = problems.kind("classification"), section("dear")
    data = loaded(tmp_path, kind, chosen, houses().with_columns(dear=pl.lit("no")))
    with pytest.raises(DataError, match=r"all 3\d\d training rows have the target no; two classes are needed"):
        learned(data, kind, chosen, kind.defaults("prior", chosen))


def test_many_columns_can_be_learned_from(tmp_path):
    kind, draw = problems.kind("regression"), np.random.default_rng(0)
    wide = pl.DataFrame({f"x{place}": draw.normal(size=150) for place in range(2000)})
    frame = wide.with_columns(price=3 * pl.col("x7") + pl.Series(draw.normal(0, 0.1, 150)))
    chosen = section("price", dict.fromkeys(wide.columns, "number"), pipeline={"select": "univariate", "select_share": 0.01})
    data = loaded(tmp_path, kind, chosen, frame)
    _, said = learned(data, kind, chosen, kind.defaults("lightgbm", chosen))
    assert kind.score(said, chosen)["r2"] > 0.7


def finished(tmp_path, chosen, config, frame=None):
    kind = problems.kind("classification")
    assert isinstance(kind, Finishing)
    data = loaded(tmp_path, kind, chosen, houses(800) if frame is None else frame)
    folds = kind.splits(data, chosen).folds
    held_out = pl.concat(
        [kind.predict(kind.fit(data, fold.train, config, chosen, 0), data, fold.test, chosen) for fold in folds]
    )
    model, said = learned(data, kind, chosen, config)
    after = kind.finish(model, held_out, chosen, 0)
    skops_models.save(after, tmp_path / "finished.skops")
    return said, kind.predict(skops_models.load(tmp_path / "finished.skops"), data, "test", chosen), after


@pytest.mark.parametrize("positive", ["yes", "no"])
def test_overconfident_probabilities_are_calibrated_and_keep_their_order(positive, tmp_path):
    chosen = section("dear", features={"positive_class": positive}, train={"calibrate": "sigmoid"})
    config = {"model": "logistic", "C": 1000.0, "class_weight": "balanced", "spline_knots": 0}
    before, after, model = finished(tmp_path, chosen, config)
    assert isinstance(model.estimator_, Calibrated)
    scores = [problems.kind("classification").score(each, chosen) for each in (before, after)]
    assert scores[1]["log_loss"] < scores[0]["log_loss"]
    assert scores[1]["roc_auc"] == pytest.approx(scores[0]["roc_auc"])


def test_calibration_is_left_out_where_it_does_not_help_or_is_not_wanted(tmp_path):
    before, after, _ = finished(tmp_path, section("dear"), {"model": "prior"})
    assert after.equals(before)
    unwanted = section("dear", train={"calibrate": "none"})
    assert not problems.kind("classification").finishes(unwanted)


def test_the_threshold_is_chosen_for_what_params_name(tmp_path):
    kind, scores = problems.kind("classification"), {}
    config = {"model": "logistic", "C": 0.01}
    for aim, more in (("f1", {}), ("precision_at_recall", {"recall": 0.97}), ("cost", {"costs": {"false_positive": 20}})):
        chosen = section("dear", train={"calibrate": "none"}, evaluate={"threshold_for": aim, **more})
        before, after, _ = finished(tmp_path, chosen, config)
        scores[aim] = kind.score(after, chosen)
        scores["base rate"] = kind.score(before, chosen)
    assert scores["f1"]["f1"] > scores["base rate"]["f1"]
    assert scores["precision_at_recall"]["recall"] > 0.9
    assert scores["cost"]["precision"] > scores["f1"]["precision"]


def test_a_threshold_for_several_classes_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"evaluate\.threshold_for = f1: needs two classes"):
        finished(tmp_path, section("class", evaluate={"threshold_for": "f1"}), {"model": "prior"})


def test_a_threshold_and_an_aim_for_it_are_not_both_given():
    with pytest.raises(ValueError, match=r"threshold and threshold_for are both given; remove one of them"):
        section("dear", evaluate={"threshold": 0.4, "threshold_for": "f1"})


def test_a_tree_of_a_forest_learns_from_few_rows_of_a_large_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "TREE_ROWS", 50)
    kind, chosen = problems.kind("regression"), section("price")
    data = loaded(tmp_path, kind, chosen, houses())
    model, _ = learned(data, kind, chosen, {"model": "extra_trees", "min_samples_leaf": 1})
    sizes = {int(tree.tree_.weighted_n_node_samples[0]) for tree in model.named_steps["model"].estimators_}
    assert sizes == {50}


def project(folder, **section_of):
    """A project with the problem `dear`, as the features step leaves it."""
    features = {"table": "houses", "target": "dear", "columns": {"size": "number", "street": "category"}}
    raw = {
        "project": {"name": "houses"},
        "ingest": {"houses": {"parquet": "houses.parquet"}},
        "problems": {"dear": "classification"},
        "dear": {"question": "Is it dear?", "features": features, **section_of},
    }
    (folder / "params.yaml").write_text(json.dumps(raw))
    known, layout = loading.load(folder / "params.yaml"), Layout(folder)
    layout.features("dear").mkdir(parents=True)
    chosen = known.section("dear")
    kind = problems.kind("classification")
    frames = kind.build({"houses": houses().lazy()}, {}, chosen, None)
    frames["rows"].write_parquet(layout.features("dear") / "rows.parquet")
    return known, layout


@pytest.mark.parametrize("models_tried", [["prior", "logistic"], ["logistic", "lightgbm"]])
def test_the_trained_models_have_the_threshold_that_held_out_rows_call_for(models_tried, tmp_path):
    recall = {"threshold_for": "precision_at_recall", "recall": 0.95}
    searched = {"n_trials": 4, "workers": 1, "models": models_tried, "repeats": 1, "choose": "best"}
    known, layout = project(tmp_path, tune=searched, evaluate=recall)
    tune.run(known, "dear", layout)
    train.run(known, "dear", layout)
    held_out = pl.read_parquet(layout.tuning("dear") / HELD_OUT)
    for name in (MODEL, JUDGED):
        model = skops_models.load(layout.model("dear") / name)
        inner = model.estimator_
        chances = held_out["probability_yes"].to_numpy()
        if isinstance(inner, Calibrated):
            chances = mapped(np.column_stack([1 - chances, chances]), inner.method, inner.maps)[:, 1]
        found = chances[held_out["label"].to_numpy() == "yes"] >= model.threshold
        assert 0.95 <= found.mean() <= 1
        yes = pl.read_parquet(layout.features("dear") / "rows.parquet").filter(~pl.col("_test"), pl.col("_target") == "yes")
        assert found.size == yes.height


def test_a_large_table_bends_at_fewer_points(tmp_path, monkeypatch):
    kind, chosen = problems.kind("regression"), section("price", {"size": "number"}, pipeline={"spline_knots": 5})
    data = loaded(tmp_path, kind, chosen, houses())
    knots = []
    for cells in (10_000, 1_000, 100):
        monkeypatch.setattr(tabular, "CELLS", cells)
        model, _ = learned(data, kind, chosen, kind.defaults("ridge", chosen))
        model = model.named_steps if hasattr(model, "named_steps") else model.regressor_.named_steps
        knots.append(model["model"].coef_.size - 1)
    assert knots == [5 + 1, 2 + 1, 0 + 1], "the last one: which were missing"


def sums(count=600, streets=30):
    """`other` is a sum of two like columns; `above` says how far a house lies above the level of its street."""
    draw = np.random.default_rng(0)
    half, street = draw.normal(650, 20, count), draw.integers(0, streets, count)
    whole = half + draw.normal(0, 3, count)
    above = draw.normal(0, 10, count)
    size = above + draw.normal(0, 30, streets)[street]
    named = [f"street {each}" for each in street]
    return pl.DataFrame(
        {"whole": whole, "half": half, "other": 2 * whole - half, "street": named, "size": size, "above": above}
    )


@pytest.mark.parametrize(
    ("target", "columns", "floor"), [("other", ("whole", "half"), 0.99999), ("above", ("size", "street"), 0.7)]
)
def test_the_portfolio_has_a_linear_model_for_sums_and_one_for_levels(target, columns, floor, tmp_path):
    kind = problems.kind("regression")
    chosen = section(target, {each: "category" if each == "street" else "number" for each in columns})
    data = loaded(tmp_path, kind, chosen, sums())
    tried = [kind.defaults("ridge", chosen), *(each for each in kind.portfolio(chosen) if each["model"] == "ridge")]
    scores = [kind.score(learned(data, kind, chosen, each)[1], chosen)["r2"] for each in tried]
    assert max(scores) > floor > max(scores[:2])
