"""Contributions of columns: how often the strongest column is the right one, and how often a row's contributions are right.

Right is what `shap` computes exactly for trees, from all training rows. The page and the server use some of them as background.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightgbm import LGBMRegressor

from bench.statistics.claim import Claim
from evergreen.serving.explanation import MAX_PREDICTIONS
from evergreen.tasks.explanation.shapley import BACKGROUND_ROWS, shapley_values, strongest_first

MODELS, ROWS, KNOWN = 10, 30, 400
"""Models, explained rows of each, and rows that each learned from."""
SERVED_ROWS = 100
"""Background rows of a served model."""
CLOSE = 0.9
"""Correlation of a row's contributions with the right ones that counts as right."""


def planted(random: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """An interaction, a curve and correlated columns; the columns after the sixth are noise."""
    x = random.normal(size=(rows, columns))
    x[:, 1] += x[:, 0]
    return x, 2 * x[:, 0] + x[:, 1] * x[:, 2] + np.sin(2 * x[:, 3]) + 0.5 * x[:, 4] ** 2 + 0.3 * random.normal(size=rows)


def contributions(model: Any, own: np.ndarray, background: np.ndarray, most: int, seed: int) -> np.ndarray:
    def predict(taken: np.ndarray, place: np.ndarray, other: np.ndarray) -> np.ndarray:
        return model.predict(np.where(taken, own[place], background[other]))[:, None]

    return shapley_values(predict, len(own), len(background), own.shape[1], most, seed).values[:, :, 0]


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    import shap

    for columns in (8, 13, 40):
        for name, backgrounds, at_once, most in (
            ("page", BACKGROUND_ROWS, ROWS, 200_000),
            ("server", SERVED_ROWS, 1, MAX_PREDICTIONS),
        ):
            strongest = close = rows = 0
            for each in range(max(2, round(MODELS * scale))):
                random = np.random.default_rng([seed, columns, each])
                x, y = planted(random, KNOWN, columns)
                model = LGBMRegressor(n_estimators=60, num_leaves=8, verbosity=-1, n_jobs=1, random_state=0).fit(x, y)
                own = planted(random, ROWS, columns)[0]
                right = shap.TreeExplainer(model, x, feature_perturbation="interventional").shap_values(own)
                background = x[random.choice(KNOWN, backgrounds, replace=False)]
                parts = [own[start : start + at_once] for start in range(0, ROWS, at_once)]
                found = np.concatenate([contributions(model, part, background, most, each) for part in parts])
                rows += ROWS
                for ours, theirs in zip(found, right, strict=True):
                    strongest += strongest_first(ours)[0] == strongest_first(theirs)[0]
                    close += np.corrcoef(ours, theirs)[0, 1] >= CLOSE
            setting = f"{name}, boosted trees, {columns} columns"
            yield Claim("the strongest column is right", setting, int(strongest), rows, 0.9)
            yield Claim(f"correlation of at least {CLOSE}", setting, int(close), rows, 0.95)
