"""SQL expressions on the columns of a table, as Polars reads them."""

import json
from collections.abc import Iterable
from typing import Any, cast

import polars as pl

PER_ROW = {"StringExpr", "TemporalExpr", "Boolean", "Sql", "Abs", "Coalesce", "FillNull", "MaxHorizontal", "MinHorizontal"}
"""Polars' names of functions that look at one row only."""


def reads_other_rows(expression: pl.Expr) -> bool:
    """Whether an aggregate or a window function is in it; functions that are not known to look at one row count as such."""
    return _reads_other_rows(json.loads(expression.meta.serialize(format="json")))


def _reads_other_rows(node: Any) -> bool:
    if isinstance(node, list):
        return any(map(_reads_other_rows, cast("list[Any]", node)))
    if not isinstance(node, dict):
        return node == "Len"
    parts = cast("dict[str, Any]", node)
    if not {"Agg", "Over"}.isdisjoint(parts) or not PER_ROW.issuperset(_function_names(parts)):
        return True
    return any(_reads_other_rows(inner) for name, inner in parts.items() if name not in ("Column", "Literal", "dtype"))


def _function_names(node: dict[str, Any]) -> Iterable[str]:
    if "input" not in node:
        return ()
    named = node.get("function", ())
    return [named] if isinstance(named, str) else named
