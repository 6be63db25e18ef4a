"""What a model predicts, as columns of numbers: probabilities of classes, or an amount."""

from collections.abc import Callable

import numpy as np
import pandas as pd

MAX_CLASSES = 3
"""Most classes that are explained."""

Predict = Callable[[pd.DataFrame], np.ndarray]
"""Rows of features -> row x output."""
