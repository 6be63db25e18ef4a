"""When a feature leaks the target. One rule for schema inference and for the diagnosis of a model.

A leak is not a feature that predicts well, but one that predicts well while the other features do not.
"""

ERROR_RATIO = 3.0
"""The other features together must have this many times the error of the leak alone."""


def stands_apart(alone: float, others: float) -> bool:
    """Whether a feature with the score `alone` predicts far better than the `others` together.

    The error is 1 - score, so ROC AUC, its skill (2 AUC - 1) and R² give the same answer.

    >>> stands_apart(0.99, 0.8), stands_apart(0.99, 0.98)
    (True, False)
    """
    return 1 - others >= ERROR_RATIO * (1 - alone)
