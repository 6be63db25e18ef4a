"""NannyML's univariate drift and its domain classifier with their defaults, by week: what they flag in each window.

A folder holds runs of `reference.parquet` and `windows.parquet`; a row has `at` (its day), and a window its own week.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import pandas as pd

warnings.filterwarnings("ignore")
os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # threads of LightGBM wait for each other on a busy machine
import nannyml  # noqa: E402


def flagged(folder: Path) -> list[dict[str, object]]:
    """The flagged columns, and whether the domain classifier flags it; one per window, in their order."""
    reference, windows = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "windows"))
    columns = [name for name in reference.columns if name != "at"]
    by_week = {"timestamp_column_name": "at", "chunk_period": "W"}
    each = nannyml.UnivariateDriftCalculator(column_names=columns, **by_week).fit(reference)
    classifier = nannyml.DomainClassifierCalculator(feature_column_names=columns, **by_week).fit(reference)
    found, told = (one.calculate(windows).filter(period="analysis").to_df() for one in (each, classifier))
    apart = told[("domain_classifier_auroc", "alert")].tolist()
    return [
        {
            "columns": [name for name in columns if found[name].iloc[row].xs("alert", level=-1).any()],
            "classifier": bool(apart[row]),
        }
        for row in range(len(found))
    ]


if __name__ == "__main__":
    folders = sorted(each for each in Path(sys.argv[1]).iterdir() if each.is_dir())
    (Path(sys.argv[1]) / "nannyml.json").write_text(json.dumps([flagged(each) for each in folders]))
