"""Classification: which of two or more classes. The answer is a probability; its threshold is the training rows' base rate."""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
from lightgbm import LGBMClassifier
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

from evergreen.tasks.config.params import Range, Table, Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Config, Kind, Model, Part
from evergreen.tasks.problems.classification import plots
from evergreen.tasks.problems.classification.predictions import ClassProbabilities
from evergreen.tasks.problems.classification.scores import PREFIX, arrays
from evergreen.tasks.problems.tabular import calibration
from evergreen.tasks.problems.tabular.model_families import (
    BOOSTING,
    BOOSTING_OF_CLASSES,
    BOOSTING_SPACE,
    FOR_BOOSTING,
    FOR_LINES,
    FOR_NETWORKS,
    FOR_TREES,
    FOREST,
    FOREST_DEFAULTS,
    FOREST_SPACE,
    LIGHTGBM,
    NETWORK_DEFAULTS,
    NETWORK_SPACE,
    PLAIN_BOOSTING_SPACE,
    PLAIN_LIGHTGBM,
    Family,
)
from evergreen.tasks.problems.tabular.neural_network import NeuralNetworkClassifier
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.problems.tabular.tabular_kind import TabularKind
from evergreen.tasks.problems.tabular.weighted_ensemble import BlendClassifier

log = logging.getLogger(__name__)


class Classification(ClassProbabilities, TabularKind):
    baseline = "prior"
    loss_name = "log loss"
    families: ClassVar = {
        "prior": Family(DummyClassifier, {"strategy": "prior"}, prepared=False, stage="baseline"),
        "logistic": Family(
            LogisticRegression,
            {"max_iter": 300, "tol": 1e-4},
            {"C": 0.003},
            {"C": Range(low=1e-4, high=10.0, log=True)},
            stage="linear",
        ),
        "lightgbm": Family(LGBMClassifier, LIGHTGBM, BOOSTING, BOOSTING_SPACE, native=True),
    }
    plain: ClassVar = {
        "prior": families["prior"],
        "logistic": Family(
            LogisticRegression,
            {"max_iter": 300, "tol": 1e-4},
            {"C": 1.0, "class_weight": None},
            {"C": Range(low=1e-3, high=100.0, log=True), "class_weight": Range(values=(None, "balanced"))},
            stage="linear",
            choices=FOR_LINES,
        ),
        "random_forest": Family(
            RandomForestClassifier, FOREST, FOREST_DEFAULTS, FOREST_SPACE, stage="trees", choices=FOR_TREES
        ),
        "lightgbm": Family(
            LGBMClassifier, PLAIN_LIGHTGBM, BOOSTING_OF_CLASSES, PLAIN_BOOSTING_SPACE, native=True, choices=FOR_BOOSTING
        ),
        "network": Family(NeuralNetworkClassifier, {}, NETWORK_DEFAULTS, NETWORK_SPACE, stage="network", choices=FOR_NETWORKS),
    }
    blend = BlendClassifier

    def fit(self, data: Rows, parts: Sequence[Part], config: Config, section: Tabular, seed: int) -> Model:
        """A classifier with `predict_proba` and, for two classes, a threshold. Raises DataError for a single class."""
        training = self.training(data, parts, config, section, seed)
        y = classes_of(training.target)
        classes, counts = np.unique(y, return_counts=True)
        if len(classes) < 2:
            raise DataError(
                f"all {len(y):,} training rows have the target {classes[0]}; two classes are needed. "
                "Give more history, or look at features.target."
            )
        model = self.assemble(training.rows, config, section, "binary" if len(classes) == 2 else "multiclass", seed)
        if len(classes) > 2:
            return training.fit(model, classes_of)
        positive = _positive(classes, section)
        # a hair above the base rate: a model that knows nothing more says no
        share = counts[list(classes).index(positive)] / len(y)
        threshold: Any = section.evaluate.threshold or float(np.nextafter(share, 1))
        bound = FixedThresholdClassifier(model, threshold=threshold, pos_label=positive, response_method="predict_proba")
        return training.fit(bound, classes_of)

    def finishes(self, section: Tabular) -> bool:
        return _calibrates(section) != "none" or section.evaluate.threshold_for is not None

    def finish(self, model: Model, held_out: pl.DataFrame, section: Tabular, seed: int) -> Model:
        """The model with calibrated probabilities where that helps, and with the threshold of evaluate.threshold_for.

        Raises ParamsError where several classes are to have a threshold.
        """
        names = [f"{PREFIX}{name}" for name in model.classes_]
        true_class, chances, _ = arrays(held_out.select("entity", "label", *names, "threshold"))
        bound, aim, method = isinstance(model, FixedThresholdClassifier), section.evaluate.threshold_for, _calibrates(section)
        if aim and not bound:
            raise ParamsError(f"evaluate.threshold_for = {aim}: needs two classes; {section.question} has {len(names)}")
        inner = model.estimator_ if bound else model
        methods: Any = ("sigmoid", "isotonic") if method == "auto" else (method,)
        entity = held_out.filter(pl.col("label").is_not_null())["entity"].to_numpy()
        found = calibration.helping(true_class, chances, entity, methods, seed) if method != "none" else None
        if found is not None:
            log.info("%s: its probabilities are calibrated: %s", section.question, found.method)
            inner, chances = calibration.Calibrated(inner, found.method, found.maps).fit(), found.apply(chances)
        if not bound:
            return inner
        finished = copy(model)
        finished.estimator_ = inner
        if aim:
            place = list(model.classes_).index(model.pos_label)
            known = true_class >= 0
            chosen = calibration.threshold_for(
                aim, true_class[known] == place, chances[known, place], section.evaluate.recall, section.evaluate.costs
            )
            finished.set_params(threshold=chosen)
        return finished

    def predict(self, model: Model, data: Rows, part: Part, section: Tabular) -> pl.DataFrame:
        """`entity`, `label` (may be missing), `probability_<class>` of each class, `threshold` (missing for several)."""
        return pl.concat(self._predict(model, rows, data, section) for rows in data.blocks([part], f"predicts {part}"))

    def _predict(self, model: Model, rows: Rows, data: Rows, section: Tabular) -> pl.DataFrame:
        chances = model.predict_proba(rows.features) if len(rows) else np.empty((0, len(model.classes_)))
        threshold = section.evaluate.threshold or getattr(model, "threshold", None)
        named, never_seen = _named(model, chances), _never_seen(model, data, section)
        if never_seen:  # the same order whichever class a fold lacks, so that predictions of several folds are one table
            named |= {f"{PREFIX}{name}": np.zeros(len(rows)) for name in never_seen}
            named = {f"{PREFIX}{name}": named[f"{PREFIX}{name}"] for name in np.unique([*model.classes_, *never_seen])}
        return pl.DataFrame({"entity": rows.entity, "label": rows.target} | named).with_columns(
            threshold=pl.lit(threshold, pl.Float64)
        )

    def predict_rows(self, model: Model, features: pd.DataFrame) -> dict[str, np.ndarray]:
        """`prediction`: the class at the model's threshold; `probability_<class>` of each class."""
        return super().predict_rows(model, features) | _named(model, model.predict_proba(features))

    def outputs(self, model: Model, most: int) -> tuple[Callable[[pd.DataFrame], np.ndarray], list[str]]:
        classes = [str(each) for each in model.classes_]
        kept = slice(1, 2) if len(classes) == 2 else slice(0, most)
        return lambda features: model.predict_proba(features)[:, kept], classes[kept]

    def row_losses(self, predictions: pl.DataFrame) -> np.ndarray:
        """Minus the logarithm of the probability of the true class."""
        place, chances, _ = arrays(predictions)
        probability = np.where(place >= 0, chances[np.arange(len(place)), place], 0.0)
        return -np.log(np.clip(probability, 1e-4, 1.0))

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Model, data: Rows, section: Tabular
    ) -> dict[str, pl.DataFrame]:
        return plots.draw(predictions, baseline)


KIND: Kind = Classification()


def _positive(classes: np.ndarray, section: Tabular) -> Any:
    """The class of two that probability and threshold are about. Raises ParamsError if features.positive_class is neither."""
    wanted = section.features.positive_class if isinstance(section.features, Table) else None
    if wanted is None:
        return classes[1]
    if wanted not in (named := {str(each): each for each in classes}):
        raise ParamsError(f"features.positive_class = {wanted}: no such class{nearest(wanted, named)}")
    return named[wanted]


def _calibrates(section: Tabular) -> str:
    return section.train.calibrate or ("auto" if isinstance(section.features, Table) else "none")


def _named(model: Model, chances: np.ndarray) -> dict[str, np.ndarray]:
    """`probability_<class>` of each class, of two the positive one last."""
    named = {f"{PREFIX}{name}": chances[:, place] for place, name in enumerate(model.classes_)}
    positive = f"{PREFIX}{getattr(model, 'pos_label', None)}"
    return named | {positive: named.pop(positive)} if positive in named else named


def _never_seen(model: Model, data: Rows, section: Tabular) -> list[Any]:
    """Classes of a plain table that the model did not learn from: of a tiny class all rows may be among those that judge."""
    if not isinstance(section.features, Table):
        return []
    known = set(model.classes_)
    return [each for each in np.unique(classes_of(data.target.drop_nulls())) if each not in known]


def classes_of(target: pl.Series) -> np.ndarray:
    """Class labels: whole numbers as integers (0 and 1, not 0.0 and 1.0), everything else as text."""
    if target.dtype.is_numeric() and (target % 1 == 0).all():
        return target.cast(pl.Int64).to_numpy()
    return target.cast(pl.String).to_numpy().astype(str)
