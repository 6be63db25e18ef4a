"""The claims, in folders that mirror the code."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
