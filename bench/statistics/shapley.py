"""Contributions of columns: how often the strongest column is the right one, and how often a row's contributions are right.

Amounts: right is what `shap` computes exactly for trees, from all training rows; the page and the server use some of them as
background. Probabilities: right are contributions to the probability itself from the same background rows, sampled until
stable; exact ones are those to log-odds, carried over by the rule of the link.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from bench.statistics.claim import Claim
from evergreen.serving.explanation import MAX_PREDICTIONS
from evergreen.tasks.explanation.compiled_contributions import CompiledContributions
from evergreen.tasks.explanation.shapley import BACKGROUND_ROWS, shapley_values, strongest_first
from evergreen.tasks.model_files.onnx_export import compile_model
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.tabular.preprocessing import Numbers

MODELS, ROWS, KNOWN = 10, 30, 400
"""Models, explained rows of each, and rows that each learned from."""
SERVED_ROWS = 100
"""Background rows of a served model."""
STABLE_PREDICTIONS = 1_000_000
CLOSE = 0.9
"""Correlation of a row's contributions with the right ones that counts as right."""
SETTINGS: dict[str, Any] = {"n_estimators": 60, "num_leaves": 8, "verbosity": -1, "n_jobs": 1, "random_state": 0}


def planted(random: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """An interaction, a curve and correlated columns; the columns after the sixth are noise."""
    x = random.normal(size=(rows, columns))
    x[:, 1] += x[:, 0]
    return x, 2 * x[:, 0] + x[:, 1] * x[:, 2] + np.sin(2 * x[:, 3]) + 0.5 * x[:, 4] ** 2 + 0.3 * random.normal(size=rows)


def sampled(
    predict: Callable[[np.ndarray], np.ndarray], own: np.ndarray, background: np.ndarray, most: int, seed: int
) -> np.ndarray:
    def mixed(taken: np.ndarray, place: np.ndarray, other: np.ndarray) -> np.ndarray:
        return predict(np.where(taken, own[place], background[other]))[:, None]

    return shapley_values(mixed, len(own), len(background), own.shape[1], most, seed).values[:, :, 0]


def exact(model: Any, known: np.ndarray, own: np.ndarray, background: np.ndarray) -> np.ndarray:
    """To the last output of the compiled model."""
    frames = [
        pd.DataFrame(each, columns=[f"c{place:02}" for place in range(known.shape[1])]) for each in (known, own, background)
    ]
    prepare = ColumnTransformer([("numbers", Numbers(), list(frames[0].columns))]).fit(frames[0])
    compiled = Compiled(compile_model(Pipeline([("prepare", prepare), ("model", model)]), frames[0]))
    found = CompiledContributions(compiled, compiled.encode_columns(frames[2])).values(compiled.encode_columns(frames[1]))
    assert found is not None
    return found[:, :, -1]


def amounts(random: np.random.Generator, columns: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Setting, contributions and right ones, of one model."""
    import shap

    x, y = planted(random, KNOWN, columns)
    model = LGBMRegressor(**SETTINGS).fit(x, y)
    own = planted(random, ROWS, columns)[0]
    right = shap.TreeExplainer(model, x, feature_perturbation="interventional").shap_values(own)
    for name, backgrounds in (("page", BACKGROUND_ROWS), ("server", SERVED_ROWS)):
        background = x[random.choice(KNOWN, backgrounds, replace=False)]
        yield f"amounts, exact, {name}, {columns} columns", exact(model, x, own, background), right
        if name == "server":
            found = [
                sampled(lambda rows: np.asarray(model.predict(rows)), row[None], background, MAX_PREDICTIONS, seed)
                for row in own
            ]
            yield f"amounts, sampled, {name}, {columns} columns", np.concatenate(found), right


def probabilities(random: np.random.Generator, columns: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    x, y = planted(random, KNOWN, columns)
    model = LGBMClassifier(**SETTINGS).fit(x, y > 1)
    own, background = planted(random, ROWS, columns)[0], x[random.choice(KNOWN, BACKGROUND_ROWS, replace=False)]
    right = sampled(lambda rows: np.asarray(model.predict_proba(rows))[:, 1], own, background, STABLE_PREDICTIONS, seed)
    yield f"probabilities, rule of the link, {columns} columns", exact(model, x, own, background), right


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    for columns in (8, 13, 40):
        hits: dict[str, np.ndarray] = {}
        runs = max(2, round(MODELS * scale))
        for each in range(runs):
            for kind in (amounts, probabilities):
                for setting, found, right in kind(np.random.default_rng([seed, columns, each]), columns, each):
                    pairs = list(zip(found, right, strict=True))
                    strongest = sum(strongest_first(ours)[0] == strongest_first(theirs)[0] for ours, theirs in pairs)
                    close = sum(np.corrcoef(ours, theirs)[0, 1] >= CLOSE for ours, theirs in pairs)
                    hits[setting] = hits.get(setting, np.zeros(2)) + np.array([strongest, close])
        for setting, (strongest, close) in hits.items():
            yield Claim("the strongest column is right", setting, int(strongest), runs * ROWS, 0.9)
            yield Claim(f"correlation of at least {CLOSE}", setting, int(close), runs * ROWS, 0.95)
