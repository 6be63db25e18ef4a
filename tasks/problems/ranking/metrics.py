"""Metrics of ranked lists with binary relevance: each is one number per user, from the places of the hits.

NDCG: Järvelin and Kekäläinen 2002, binary gain, the ideal list holds min(k, relevant) hits. MAP: average precision at k with
the same ideal. Recall divides by all relevant items, also by those that no list could hold.
"""

import numpy as np


def per_user(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """ndcg, recall, map and hit_rate, one value per user, nan where a user has nothing relevant.

    `hits`: users x k, true where the item at that rank is relevant; ranks beyond the end of a short list are false.
    `relevant`: number of relevant items per user.
    """
    k = hits.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(relevant, k)]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ndcg": hits @ discount / ideal,
            "recall": hits.sum(axis=1) / relevant,
            "map": (precision * hits).sum(axis=1) / np.minimum(relevant, k),
            "hit_rate": np.where(relevant > 0, hits.any(axis=1), np.nan),
        }
