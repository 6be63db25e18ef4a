"""What init leaves out, and what it tells, of made tables with a target in other words."""

from datetime import date

import polars as pl

from evergreen.tasks.onboarding import schema_inference
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import InferredSchema
from tests.tasks.onboarding.grouped_tables import band, sum3, ungrouped


def of(table: pl.DataFrame, **asked) -> InferredSchema:
    asked = {"target": table.columns[-1], **asked}
    return schema_inference.infer_schema(table.lazy(), InitOptions(**asked), date(2026, 1, 1))


def test_three_columns_that_sum_to_the_target_are_told_and_can_be_dropped():
    found = of(sum3())
    assert set(found.features) == {"items", "net", "tax", "shipping"}
    (warning,) = [each for each in found.warnings if "leaks total" in each]
    assert warning.startswith("net + tax + shipping: leaks total: it is total, to a thousandth; they stay.")
    assert warning.endswith("use --drop net --drop tax --drop shipping")
    assert set(of(sum3(), drop=("net", "tax", "shipping")).features) == {"items"}


def test_a_monotone_copy_is_left_out_and_a_band_is_told():
    found = of(band())
    assert set(found.features) == {"a", "b", "price_band"}
    said = "\n".join(found.warnings)
    assert "log_price: is price in other words: " in said
    assert "price_band: leaks price: its 4 values are ranges of price that do not overlap; it stays." in said
    assert "use --drop price_band" in said


def test_tables_without_leaks_lose_no_column_and_rarely_warn():
    warned = 0
    for seed in range(12):
        table = ungrouped(seed)
        found = of(table, entity="none")
        assert set(found.features) == set(table.columns[:-1])
        warned += any("leaks y" in each or "decides y" in each for each in found.warnings)
    assert warned <= 1
