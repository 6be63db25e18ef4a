"""Row groups of a Parquet file, by their bytes: equal bytes are equal rows."""

import hashlib
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]


def digests(path: Path, rows: int) -> list[str]:
    """A digest of the rows of each row group, in order. Empty if one but the last has another number of rows than `rows`.

    Column chunks are hashed as they are stored, compressed: a table that grows at its end keeps the digests before it.
    """
    metadata = cast(Any, pq).read_metadata(path)
    schema = str([str(metadata.schema.column(place)) for place in range(metadata.num_columns)])
    found: list[str] = []
    with path.open("rb") as file:
        for place in range(metadata.num_row_groups):
            group = metadata.row_group(place)
            if group.num_rows != rows and place + 1 < metadata.num_row_groups:
                return []
            content = hashlib.sha256(f"{schema}{group.num_rows}".encode())
            for column in (group.column(number) for number in range(group.num_columns)):
                start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
                file.seek(start)
                content.update(f"{column.compression}{column.total_compressed_size}".encode())
                content.update(file.read(column.total_compressed_size))
            found.append(content.hexdigest())
    return found
