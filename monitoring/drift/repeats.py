"""Repeated rows of a window: rows of one caller, or the same rows asked again, are one observation together.

Each row weighs 1 / (rows of its cluster), so that the weights of a window add up to its number of clusters.
"""

import numpy as np
import polars as pl
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

MOST_COPIES = 0.1
"""Equal rows are repeats where a row has fewer copies than this by chance."""


def chance_of_copy(features: pl.DataFrame, entity: np.ndarray) -> float:
    """Chance that rows of two entities are equal by nature, as in a table of few categories; 1 without columns.

    `features`: reference rows; `entity`: their codes.
    """
    if not features.width or features.height < 2:
        return 1.0
    once = pl.DataFrame({"row": features.hash_rows(), "entity": entity}).unique()
    sizes = once.group_by("row").len()["len"].to_numpy().astype(float)
    return float((sizes * (sizes - 1)).sum() / (once.height * (once.height - 1))) if once.height > 1 else 1.0


def clusters(features: pl.DataFrame, entity: pl.Series | None, chance: float, rows: int) -> np.ndarray:
    """The cluster of each of `rows` rows, as codes from 0.

    `features`: columns that tell equal rows; none where rows cannot be told apart. `entity`: null for an anonymous caller.
    `chance`: see chance_of_copy.
    """
    equal = np.arange(rows)
    if features.width and chance * rows < MOST_COPIES:
        equal = np.unique(features.hash_rows().to_numpy(), return_inverse=True)[1]
    return equal if entity is None or entity.null_count() == rows else _joined(equal, entity)


def weights(cluster: np.ndarray) -> np.ndarray:
    """The weight of each row.

    >>> weights(np.array([0, 0, 1])).tolist()
    [0.5, 0.5, 1.0]
    """
    return 1.0 / np.bincount(cluster)[cluster]


def _joined(equal: np.ndarray, entity: pl.Series) -> np.ndarray:
    """Cluster of each row: rows that share an entity or are equal, directly or through other rows."""
    named = entity.is_not_null().to_numpy()
    codes = entity.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    count = int(equal.max()) + 1
    nodes = count + int(codes.max()) + 1
    edges = coo_matrix((np.ones(int(named.sum()), dtype=np.int8), (equal[named], count + codes[named])), (nodes, nodes))
    return np.unique(connected_components(edges, directed=False)[1][equal], return_inverse=True)[1]
