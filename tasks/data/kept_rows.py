"""Rows of source files that an earlier ingest read, taken from data/raw in the place of the files.

Files that did not change keep their rows, and new and changed files alone are read, where that gives the bytes of a run from
nothing: the contract does not follow from values (each column of text has a type), the files' columns are those of before, and
every value fits. Otherwise every file is read again, and the log says why.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.paths import Layout, sha256
from evergreen.tasks.data.conversion import check_formats, conversions, select_columns, unreadable
from evergreen.tasks.data.earlier_results import EarlierResults, as_json, code, digest
from evergreen.tasks.data.readers import Read, convert, describe, joined, naming, no_rows, scan_files, scan_source
from evergreen.tasks.data.row_blocks import packed_table, unpacked_table
from evergreen.tasks.data.source_files import SourceFile, listed

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Rows that follow each other."""

    rows: pl.LazyFrame
    height: int
    place: int | None
    """The first of them among those in data/raw, from 0; None: they are read now."""


class FileRows(NamedTuple):
    """What is known of a file that was read."""

    address: str
    state: Sequence[int | str]
    """See SourceFile."""
    digest: str
    """SHA-256; empty for an object in S3."""
    height: int
    schema: str
    """Of the rows as the file holds them; a packed table without rows."""


@dataclass(frozen=True)
class Table:
    """The rows of a source."""

    read: Read
    pieces: tuple[Piece, ...]
    """The same rows."""
    files: tuple[FileRows, ...] = ()

    @property
    def count(self) -> int:
        return sum(piece.height for piece in self.pieces)

    def unmoved(self) -> int:
        """How many rows at the beginning are those in data/raw, at the same places."""
        found = 0
        for piece in self.pieces:
            if piece.place != found:
                break
            found += piece.height
        return found

    def after(self, count: int) -> pl.LazyFrame:
        """The rows without the first `count`."""
        if not count:
            return self.read.rows
        rest, start = list[pl.LazyFrame](), 0
        for piece in self.pieces:
            rest.append(piece.rows.slice(max(0, count - start)))
            start += piece.height
        return pl.concat(rest)


@dataclass(frozen=True)
class _Earlier:
    """A table in data/raw, and the files that it was read from."""

    files: Mapping[str, FileRows]
    rows: pl.LazyFrame
    schema: str
    """Of the rows of all files as these hold them; a packed table without rows."""
    contract: Source
    notes: tuple[str, ...]
    all_fit: bool
    """Whether every value fitted its type."""

    @cached_property
    def places(self) -> dict[str, int]:
        """The first row of each file among `rows`, from 0."""
        counts = (each.height for each in self.files.values())
        return dict(zip(self.files, accumulate(counts, initial=0), strict=False))


def read(name: str, source: Source, layout: Layout, staging: Path, results: EarlierResults) -> Table:
    """Read a source, but no file that an earlier run read and that has not changed. Raises what readers.read_table raises."""
    check_formats(name, source)
    with naming(name, source, staging):
        log.info("ingest: %s from %s", name, describe(source))
        files = listed(name, source, layout.root)
        table = (
            _read_files(name, source, files, layout, staging, results) if files else _read_all(name, source, layout, staging)
        )
        if not table.count:
            raise no_rows(name, source)
        return table


def put(name: str, source: Source, table: Table, layout: Layout, results: EarlierResults) -> None:
    """Keep what the next run needs of a table that was written to data/raw with all of its rows."""
    if not table.files:
        return
    kept = {
        "files": table.files,
        "raw": table_parts.digests(layout.raw(name)),
        "schema": _schema_of(name, source, table.files),
        "contract": table.read.source.model_dump(mode="json", exclude_unset=True),
        "notes": table.read.notes,
        "all_fit": table.read.all_fit,
    }
    results.put(_key(name, source), as_json(kept))


def _key(name: str, source: Source) -> str:
    return digest("ingest", code(), name, source.model_dump(mode="json"))


def _earlier(name: str, source: Source, layout: Layout, results: EarlierResults) -> _Earlier | None:
    """None unless data/raw holds what an earlier run wrote, with the same code and settings."""
    kept, raw = results.get(_key(name, source)), layout.raw(name)
    if kept is None or not raw.is_dir() or table_parts.digests(raw) != kept["raw"]:
        return None
    files = {each[0]: FileRows(*each) for each in kept["files"]}
    contract, rows = Source.model_validate(kept["contract"]), table_parts.scan(raw)
    return _Earlier(files, rows, kept["schema"], contract, tuple(kept["notes"]), kept["all_fit"])


def _read_all(name: str, source: Source, layout: Layout, staging: Path) -> Table:
    """A source without files."""
    found = convert(name, source, scan_source(name, source, layout.root, staging))
    return Table(found, (Piece(found.rows, _count(found.rows), None),))


def _read_files(
    name: str, source: Source, files: Sequence[SourceFile], layout: Layout, staging: Path, results: EarlierResults
) -> Table:
    before = _earlier(name, source, layout, results)
    known = before.files if before else dict[str, FileRows]()
    same = {each.address: known[each.address] for each in files if _is_unchanged(each, known.get(each.address))}
    digests = {each.address: same[each.address].digest if each.address in same else _digest(each) for each in files}
    same |= {each: known[each] for each, found in digests.items() if found and each in known and known[each].digest == found}
    if before and same:
        kept = {each.address: same[each.address]._replace(state=each.state) for each in files if each.address in same}
        if found := _with_kept(name, source, files, kept, digests, before, staging):
            return found
    frames = scan_files(name, source, files, staging)
    told = [_file_rows(each, frames[each.address], digests[each.address]) for each in files]
    found = convert(name, source, joined(name, source, frames))
    return Table(found, (Piece(found.rows, sum(each.height for each in told), None),), tuple(told))


def _digest(file: SourceFile) -> str:
    return sha256(file.path) if file.path else ""


def _is_unchanged(file: SourceFile, known: FileRows | None) -> bool:
    return known is not None and file.state != () and [*file.state] == [*known.state]


def _file_rows(file: SourceFile, rows: pl.LazyFrame, found: str) -> FileRows:
    schema = rows.collect_schema()
    return FileRows(file.address, file.state, found, _count(rows), packed_table(pl.DataFrame(schema=schema)))


def _with_kept(
    name: str,
    source: Source,
    files: Sequence[SourceFile],
    kept: Mapping[str, FileRows],
    digests: Mapping[str, str],
    before: _Earlier,
    staging: Path,
) -> Table | None:
    """The table, from the rows of the files `kept` and those of the others; None: every file is to be read."""
    if list(before.files) == [each.address for each in files] == list(kept):
        log.info("ingest: %s: no file has changed", name)
        return _table(replace(_read_of(before), rows=before.rows), kept.values(), kept, before)
    if not before.all_fit:
        return _every_file(name, "a value of an earlier file does not fit its type")
    frames = scan_files(name, source, [each for each in files if each.address not in kept], staging)
    told = [kept.get(each.address) or _file_rows(each, frames[each.address], digests[each.address]) for each in files]
    if _schema_of(name, source, told) != before.schema:
        return _every_file(name, "the columns of the files, or their types, are not those of before")
    empty = pl.LazyFrame(schema=_schema(before.schema))
    new = joined(name, source, {"": empty, **frames})
    chosen = select_columns(name, source, describe(source), new)
    undeclared = [each for each, kind in chosen.collect_schema().items() if kind == pl.String and each not in source.types]
    if source.csv and undeclared:
        return _every_file(name, f"the types of {', '.join(undeclared)} follow from all values; declare them under types")
    if next(unreadable(source, chosen, conversions(source, chosen)[1]), None):
        return _every_file(name, "a value of a new file does not fit its type")
    found = convert(name, source, new)
    if found.rows.collect_schema() != before.rows.collect_schema():
        return _every_file(name, "the types of the columns are not those of before")
    log.info("ingest: %s: %s of %s files have not changed", name, f"{len(kept):,}", f"{len(files):,}")
    return _table(found, told, kept, before)


def _every_file(name: str, why: str) -> None:
    log.info("ingest: %s: every file is read again: %s", name, why)


def _read_of(before: _Earlier) -> Read:
    return Read(before.rows, before.rows, before.contract, before.notes, all_fit=before.all_fit)


def _table(new: Read, files: Iterable[FileRows], kept: Mapping[str, FileRows], before: _Earlier) -> Table:
    """`new`: the rows of the files that are not kept, in their order."""
    files, pieces = tuple(files), tuple(_pieces([*files], kept, before, new.rows))
    return Table(replace(new, rows=pl.concat(piece.rows for piece in pieces)), pieces, files)


def _pieces(files: Sequence[FileRows], kept: Mapping[str, FileRows], before: _Earlier, new: pl.LazyFrame) -> Iterator[Piece]:
    """Runs of files that were moved by the same number of rows, or are new."""
    starts = accumulate((each.height for each in files), initial=0)
    moved = [
        before.places[each.address] - start if each.address in kept else None
        for each, start in zip(files, starts, strict=False)
    ]
    read = 0
    for _, run in groupby(zip(moved, files, strict=True), key=lambda each: each[0]):
        shifts, members = zip(*run, strict=True)
        count = sum(each.height for each in members)
        if shifts[0] is None:
            yield Piece(new.slice(read, count), count, None)
            read += count
        else:
            place = before.places[members[0].address]
            yield Piece(before.rows.slice(place, count), count, place)


def _schema_of(name: str, source: Source, files: Iterable[FileRows]) -> str:
    """Of the rows of all files together. Raises SourceError where their columns differ, as `joined` does."""
    rows = joined(name, source, {each.address: pl.LazyFrame(schema=_schema(each.schema)) for each in files})
    return packed_table(pl.DataFrame(schema=rows.collect_schema()))


@cache
def _schema(packed: str) -> pl.Schema:
    return unpacked_table(packed).schema


def _count(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())
