"""NannyML's univariate drift with its defaults, by week: the columns that it flags in each window.

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
import nannyml  # noqa: E402


def flagged(folder: Path) -> list[list[str]]:
    """One list of columns per window, in their order."""
    reference, windows = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "windows"))
    columns = [name for name in reference.columns if name != "at"]
    calculator = nannyml.UnivariateDriftCalculator(column_names=columns, timestamp_column_name="at", chunk_period="W")
    found = calculator.fit(reference).calculate(windows).filter(period="analysis").to_df()
    return [[name for name in columns if found[name].iloc[row].xs("alert", level=-1).any()] for row in range(len(found))]


if __name__ == "__main__":
    folders = sorted(each for each in Path(sys.argv[1]).iterdir() if each.is_dir())
    (Path(sys.argv[1]) / "nannyml.json").write_text(json.dumps([flagged(each) for each in folders]))
