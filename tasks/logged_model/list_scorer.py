"""A logged recommender: users or baskets in, ranked lists out."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.logged_model.manifest import Manifest
from evergreen.tasks.problems.recommender.estimators import Ranked, Recommender
from evergreen.tasks.problems.recommender.online_histories import Session, as_id
from evergreen.tasks.problems.recommender.user_histories import take

BASKET = "basket"
"""Column of the input: the items of a session, a list or a text with commas between them."""


class ListScorer:
    """Recommends with the histories that the model was trained on."""

    def __init__(self, manifest: Manifest, model: Recommender) -> None:
        self.manifest, self._model = manifest, model

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One list for each row of the frame: the columns `items` and `scores`, best first, behind the column of the user.

        A row has a user, a basket, or both; an unknown user and an empty row get what is popular. Items of the basket count as
        bought and are not recommended. `params`: `k`, the length of a list; `novel`, only items that the user never bought.
        Raises DataError for a frame with neither column, and for a `k` below 1.
        """
        given, user = params or {}, self.manifest.user
        k, novel = int(given.get("k") or self.manifest.k), bool(given.get("novel") or False)
        if k < 1:
            raise DataError(f"params: k = {k}: must be at least 1")
        if user not in model_input and BASKET not in model_input:
            raise DataError(f"columns {', '.join(map(str, model_input)) or '(none)'}: needs {user}, {BASKET}, or both")
        rows = len(model_input)
        positions = self._positions(model_input[user]) if user in model_input else np.full(rows, -1)
        baskets = [self._basket(each) for each in model_input[BASKET]] if BASKET in model_input else [[]] * rows
        lists = self._lists(positions, baskets, k, novel)
        found = pd.DataFrame({"items": [items for items, _ in lists], "scores": [scores for _, scores in lists]})
        found.index = model_input.index
        if user in model_input:
            found.insert(0, user, model_input[user])
        return found

    def _lists(
        self, positions: np.ndarray, baskets: Sequence[list[Any]], k: int, novel: bool
    ) -> list[tuple[list[Any], list[float]]]:
        alone = [row for row, basket in enumerate(baskets) if not basket]
        found: dict[int, tuple[list[Any], list[float]]] = {}
        ranked = self._model.rank(positions[alone], k, novel)
        for place, row in enumerate(alone):
            found[row] = self._list(ranked, place, [], k)
        day = self._model.day_
        for row, basket in enumerate(baskets):
            if basket:
                session = Session.on(self._model.histories_, int(positions[row]), np.array(basket), day)
                ranked = self._model.reading(session, day).rank(np.array([0]), k + len(basket), novel)
                found[row] = self._list(ranked, 0, basket, k)
        return [found[row] for row in range(len(positions))]

    def _list(self, ranked: Ranked, row: int, basket: Sequence[Any], k: int) -> tuple[list[Any], list[float]]:
        mine = np.flatnonzero(ranked.row == row)
        items, scores = (
            take(self._model.catalogue_, ranked.item[mine], ranked.late).tolist(),
            ranked.score[mine].astype(float).tolist(),
        )
        kept = [(item, score) for item, score in zip(items, scores, strict=True) if item not in set(basket)][:k]
        return [item for item, _ in kept], [score for _, score in kept]

    def _positions(self, users: Any) -> np.ndarray:
        """Of users in the histories; -1 for an unknown or missing one."""
        histories = self._model.histories_
        ids = [None if each is pd.NA else as_id(each, histories.id_kind) for each in users]
        there = np.array([each is not None for each in ids], dtype=bool)
        found = np.full(len(ids), -1)
        if there.any():
            found[there] = histories.find(np.array([each for each in ids if each is not None]))
        return found

    def _basket(self, given: Any) -> list[Any]:
        """Ids of items as the catalogue has them; unknown ones are left out."""
        if isinstance(given, str):
            given = json.loads(given) if given.startswith("[") else re.split(r"\s*,\s*", given.strip())
        if not isinstance(given, list | tuple | np.ndarray):
            return []
        known = self._model.catalogue_
        ids = [each for each in (as_id(value, known) for value in given) if each is not None]
        return list(dict.fromkeys(each for each in ids if each in known))
