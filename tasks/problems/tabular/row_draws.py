"""Which rows of a plain table without time judge: each is drawn for itself, by a hash of its entity or of its test key.

It is a test row where the hash lies below `test_share`. No other row takes part, so that rows that are added, removed or sorted
move none, and a column moves none that is not in the key. Rows with the same key share a draw, LOT of them at most: copies stay
together, and a table of few distinct rows still gives its share.

Draws lie in files and are sorted range by range, so that memory follows EVERGREEN_MEMORY_MB and not the rows. The result is the
same for any number of ranges.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from evergreen.tasks.core import memory
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

LOT = 5
"""So many rows with the same key and target share a draw; the next ones have another."""
ENTITIES = 0.75
"""Entities are few, and each counts: at least this part of test_share of them are test entities."""
FEWEST_ENTITIES = 10
"""Of the test entities, where there are twice as many: the gate cannot tell models apart with fewer."""
DISTINCT = 0.99
"""A key is complete when it has this share of the distinct rows that all columns have."""
ROW_BYTES = 200
"""Of a row while those of a range are sorted."""
AT_A_TIME = 2**19
"""Numbers that are read from a file at once."""


class Numbers:
    """64-bit numbers, one per row, in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.count = file, 0

    def append(self, values: np.ndarray) -> None:
        self._file.seek(0, 2)
        self._file.write(values.astype(np.uint64).tobytes())
        self.count += len(values)

    def read(self, start: int, count: int) -> np.ndarray:
        self._file.seek(8 * start)
        return np.frombuffer(self._file.read(8 * count), np.uint64)

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        """Write `values` at `places`, which ascend."""
        while len(places):
            first = int(places[0])
            count = int(np.searchsorted(places, first + AT_A_TIME))
            there = self.read(first, int(places[count - 1]) + 1 - first).copy()
            there[places[:count] - first] = values[:count]
            self._file.seek(8 * first)
            self._file.write(there.tobytes())
            places, values = places[count:], values[count:]

    def chunks(self) -> Iterator[np.ndarray]:
        return (self.read(start, AT_A_TIME) for start in range(0, self.count, AT_A_TIME))

    def nth(self, place: int) -> int:
        """The number at `place`, from 0, of all in ascending order; found 16 bits at a time."""
        found = 0
        for shift in (48, 32, 16, 0):
            counts = np.zeros(2**16, dtype=np.int64)
            for chunk in self.chunks():
                digits = chunk >> np.uint64(shift)
                same = digits[digits >> np.uint64(16) == found]
                counts += np.bincount((same & np.uint64(0xFFFF)).astype(np.int64), minlength=2**16)
            below = np.cumsum(counts)
            digit = int(np.searchsorted(below, place, side="right"))
            place -= int(below[digit] - counts[digit])
            found = found << 16 | digit
        return found


class Scratch(ExitStack):
    """Files without a name, which are gone with it."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None: the one that TMPDIR names."""
        super().__init__()
        self.folder = folder

    def numbers(self, chunks: Iterable[np.ndarray] = ()) -> Numbers:
        """These numbers in a file of their own."""
        found = Numbers(self.enter_context(tempfile.TemporaryFile(dir=self.folder)))  # noqa: SIM115
        for chunk in chunks:
            found.append(chunk)
        return found


def distinguishing(rows: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """The first of the columns `names` that together make the rows as distinct as all of them do, but for 1 - DISTINCT."""
    return complete_key(names, lambda chosen: rows.select(pl.struct(chosen).n_unique()).item())


def complete_key(names: Sequence[str], distinct: Callable[[Sequence[str]], int]) -> list[str]:
    """As `distinguishing`. `distinct`: the number of distinct rows of some columns."""
    whole = distinct(names)
    for count in range(1, len(names)):
        if distinct(names[:count]) >= DISTINCT * whole:
            return list(names[:count])
    return list(names)


def count_distinct(numbers: Numbers, scratch: Scratch) -> int:
    count = 0
    for same in _by_range(numbers, numbers, scratch):
        found = np.empty(0, np.uint64)
        for batch in same:
            found = np.union1d(found, batch["draw"].to_numpy())
        count += len(found)
    return count


def _ranges(rows: int) -> int:
    """So many ranges of draws, the rows of each of which are sorted within memory."""
    return -(-rows * ROW_BYTES // memory.limit()) or 1


def in_lots(keys: Numbers, targets: Numbers, scratch: Scratch) -> Numbers:
    """The draws of rows, by hashes of their `keys` and of their `targets`: LOT equal ones share a draw, in their order."""
    draws = scratch.numbers(keys.chunks())
    for same in _by_range(keys, targets, scratch):
        known: pl.DataFrame | None = None
        for batch in same:
            counted = batch.with_columns(before=pl.int_range(pl.len()).over("draw", "mark"))
            sizes = batch.group_by("draw", "mark").len("before")
            if known is not None:
                earlier = counted.select("draw", "mark").join(known, on=["draw", "mark"], how="left", maintain_order="left")
                counted = counted.with_columns(pl.col("before") + earlier["before"].fill_null(0))
                sizes = pl.concat([known, sizes]).group_by("draw", "mark").agg(pl.col("before").sum())
            known = sizes
            later = counted.select("place", key="draw", lot=pl.col("before") // LOT).filter(pl.col("lot") > 0)
            if later.height:
                draws.put(later["place"].to_numpy(), hash_rows(later.select(pl.col("key", "lot").cast(pl.String))))
    return draws


def _by_range(draws: Numbers, marks: Numbers, scratch: Scratch) -> Iterator[Iterator[pl.DataFrame]]:
    """Of each range of draws, ascending, the rows in frames that fit into memory: place, draw, mark; in their order.

    One frame unless many rows share a draw. Each range is laid apart in a file first, so that each row is read twice, however
    many ranges there are.
    """
    count, most = _ranges(draws.count), max(AT_A_TIME, memory.limit() // ROW_BYTES)
    edges = np.array([place * 2**64 // count for place in range(1, count)], dtype=np.uint64)
    with Scratch(scratch.folder) as own:
        apart = [own.numbers() for _ in range(count)]
        for start in range(0, draws.count, AT_A_TIME):
            draw, mark = draws.read(start, AT_A_TIME), marks.read(start, AT_A_TIME)
            rows = np.stack([np.arange(start, start + len(draw), dtype=np.uint64), draw, mark], axis=1)
            held = np.searchsorted(edges, draw, side="right")
            for number in map(int, np.unique(held)):
                apart[number].append(rows[held == number].ravel())
        yield from (_frames(each, most) for each in apart)


def _frames(rows: Numbers, most: int) -> Iterator[pl.DataFrame]:
    """Place, draw and mark of `most` rows at a time."""
    for start in range(0, rows.count, 3 * most):
        place, draw, mark = rows.read(start, 3 * most).reshape(-1, 3).T
        yield pl.DataFrame({"place": place.astype(np.int64), "draw": draw, "mark": mark})


# Which draws are those of test rows


@dataclass(frozen=True)
class TestDraws:
    """Says of draws whether their rows are test rows."""

    below: float
    """Draws under it are, ..."""
    lowest: int
    """... so are those up to this one (-1: none), ..."""
    added: np.ndarray
    """... and these, ..."""
    removed: np.ndarray
    """... but not these."""

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        return (self.usual(draws) & ~np.isin(draws, self.removed)) | np.isin(draws, self.added)

    def usual(self, draws: np.ndarray) -> np.ndarray:
        return (draws < self.below) | (draws <= np.uint64(self.lowest) if self.lowest >= 0 else False)


def choose(draws: Numbers, classes: Numbers, share: float, by_entity: bool, scratch: Scratch) -> TestDraws:
    """Each class gives one draw at least, and keeps one to learn from. `classes`: per row, from 0; of draws by entity a class
    gives ENTITIES of their share at least, and the whole FEWEST_ENTITIES or half of them.
    """
    pairs = _Pairs.of(draws, classes, scratch)
    distinct, first = pairs.lowest(FEWEST_ENTITIES)
    fewest = min(FEWEST_ENTITIES, distinct // 2) if by_entity else 0
    usual = TestDraws(share * 2.0**64, int(first[fewest - 1]) if fewest else -1, *(np.empty(0, np.uint64),) * 2)
    sizes, inside, last = pairs.by_class(usual)
    least = np.maximum(1, (ENTITIES * share * sizes).astype(int)) if by_entity else np.ones(len(sizes), dtype=int)
    needy = inside - len(sizes) < least  # each class takes one from the others at most
    special = np.unique(np.concatenate([last, *pairs.lows(np.where(needy, least, 0))]))
    members = pairs.members(special, len(sizes))
    before = usual.usual(special)
    now = before.copy()
    for mine, size, count, wanted in zip(members, sizes, inside, least, strict=True):
        given = count - before[mine].sum() + now[mine].sum()
        if size > 1 and given < wanted:
            now[mine[:wanted]] = True
        elif given == size:
            now[mine[-1:]] = False
    return TestDraws(usual.below, usual.lowest, special[now & ~before], special[before & ~now])


@dataclass(frozen=True)
class _Pairs:
    """The distinct pairs of a draw and a class, ascending."""

    draws: Numbers
    classes: Numbers

    @classmethod
    def of(cls, draws: Numbers, classes: Numbers, scratch: Scratch) -> "_Pairs":
        pairs = cls(scratch.numbers(), scratch.numbers())
        for same in _by_range(draws, classes, scratch):
            found: list[pl.DataFrame] = []
            for batch in same:
                found = [pl.concat([*found, batch.select("draw", "mark").unique()]).unique()]
            for each in found:
                ordered = each.sort("draw", "mark")
                pairs.draws.append(ordered["draw"].to_numpy())
                pairs.classes.append(ordered["mark"].to_numpy())
        return pairs

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        classes = (each.astype(np.int64) for each in self.classes.chunks())
        return zip(self.draws.chunks(), classes, strict=True)

    def lowest(self, most: int) -> tuple[int, np.ndarray]:
        """The number of distinct draws, and the lowest of them."""
        count, first, before = 0, np.empty(0, np.uint64), None
        for draws in self.draws.chunks():
            new = np.append(before is None or draws[0] != before, draws[1:] != draws[:-1])
            count, first, before = count + int(new.sum()), np.append(first, draws[new][: most - len(first)]), draws[-1]
        return count, first

    def by_class(self, usual: TestDraws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class the number of its draws, the number of those that are `usual`, and its last draw."""
        most = 1 + max((int(classes.max()) for _, classes in self._chunks()), default=-1)
        sizes, inside, last = np.zeros(most, dtype=int), np.zeros(most, dtype=int), np.zeros(most, np.uint64)
        for draws, classes in self._chunks():
            sizes += np.bincount(classes, minlength=most)
            inside += np.bincount(classes[usual.usual(draws)], minlength=most)
            np.maximum.at(last, classes, draws)
        return sizes, inside, last

    def lows(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """The lowest draws of each class, as many as are `wanted` of it."""
        seen = np.zeros(len(wanted), dtype=int)
        for draws, classes in self._chunks():
            rank = pl.DataFrame({"class": classes}).select(pl.int_range(pl.len()).over("class")).to_series().to_numpy()
            yield draws[seen[classes] + rank < wanted[classes]]
            seen += np.bincount(classes, minlength=len(seen))

    def members(self, special: np.ndarray, classes: int) -> list[np.ndarray]:
        """Of each class which of the draws `special` it has: their places there, ascending."""
        found = [np.empty((2, 0), dtype=int)]
        for draws, own in self._chunks():
            there = np.isin(draws, special)
            found.append(np.stack([own[there], np.searchsorted(special, draws[there])]))
        own, places = np.concatenate(found, axis=1)
        order = np.argsort(own, kind="stable")
        return np.split(places[order], np.cumsum(np.bincount(own, minlength=classes))[:-1])
