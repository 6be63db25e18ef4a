"""Tables as `evergreen init` reads them."""

import polars as pl

from evergreen.tasks.config.params import Source
from evergreen.tasks.data.conversion import convert_types
from evergreen.tasks.data.type_inference import infer_contract


def as_init_reads(table: pl.DataFrame) -> pl.LazyFrame:
    """The table with the types that its values show."""
    source = infer_contract(Source(parquet="t"), table.lazy()).source
    return convert_types("t", source, "parquet t", table.lazy())[0]
