"""BentoML's server of the same pipeline, with its adaptive batching on. The environment names the model's file.

Rows come as a list: with a data frame as argument, the batches of 1.4.39 raise TypeError.
"""

import os
from pathlib import Path

import bentoml
import pandas as pd

from evergreen.tasks.model_files import skops_models


@bentoml.service(workers=1)
class Model:
    def __init__(self) -> None:
        self.model = skops_models.load(Path(os.environ["MODEL"]))

    @bentoml.api(batchable=True)
    def predict(self, rows: list[dict]) -> list[float]:
        return self.model.predict_proba(pd.DataFrame(rows))[:, 1].tolist()
