"""Scheduled scoring of rows that come in as files, at an address or from a query: each run scores what is new, once.

What was scored is in var/scheduled_scoring/NAME. It is written after the predictions, so a killed run scores again what it had
not finished, into the same file. A file that cannot be scored is set aside until it, or the model, changes.
"""

import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import polars as pl

from evergreen.flows.operations import batch_scoring
from evergreen.tasks.config.operations import INPUT_NEEDED
from evergreen.tasks.config.params import Params, ScoringInput, Section, Source
from evergreen.tasks.core.errors import DataError, EvergreenError, ParamsError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout, locking, read_json, sha256, write_json, writing
from evergreen.tasks.data import s3_files
from evergreen.tasks.data.readers import scan_query
from evergreen.tasks.scoring import batch

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60
"""Of a request for the file at an address."""
OUTPUTS = (".csv", ".parquet")
"""Endings of an input that its output keeps; .csv is added to others."""
KEYS = "keys.parquet"
"""Keys of the rows of a query that were scored, as text."""


class Result(Section):
    problem: str
    version: int
    scored: dict[str, str]
    """Input -> the file of its predictions, relative to the project."""
    rows: int
    """Rows of these inputs."""
    not_scored: int
    """Rows of these inputs without a prediction."""
    set_aside: dict[str, str]
    """Input -> why it could not be scored."""
    known: int
    """Inputs, or rows of a query, that an earlier run had scored."""


@dataclass
class _Run:
    """One run over the inputs of a problem."""

    layout: Layout
    params: Params
    problem: str
    source: ScoringInput
    version: int
    ledger: bool
    say: Callable[[str], None]
    scored: dict[str, str] = field(default_factory=dict[str, str])
    rows: int = 0
    not_scored: int = 0
    set_aside: dict[str, str] = field(default_factory=dict[str, str])
    known: int = 0

    @property
    def folder(self) -> Path:
        return self.layout.var / "scheduled_scoring" / self.problem

    @property
    def outputs(self) -> Path:
        return self.layout.root / (self.params.section(self.problem).schedule.output or f"data/scores/{self.problem}")

    # Files

    def score_files(self, files: Iterable["_Input"]) -> None:
        """Score each whose content is new. One that cannot be scored does not stop the others."""
        place = self.folder / "files.json"
        state: dict[str, dict[str, Any]] = read_json(place) if place.exists() else {}
        for each in files:
            name, digest, reason = each.name, each.digest, each.reason
            before = state.get(name, {})
            if digest == before.get("sha256") and "reason" not in before:
                self.known += 1
                continue
            if digest == before.get("sha256") and before["version"] == self.version:
                reason = before["reason"]
            outs = before.get("outs", [])
            about: dict[str, Any] = {"sha256": digest, "version": self.version, "at": _now(), "outs": outs}
            if reason is None:
                out = _output(name, {each for entry in state.values() for each in entry["outs"]})
                found = self._attempt(each, self.outputs / out)
                if isinstance(found, batch.Result):
                    self._count(name, found)
                    state[name] = about | {"outs": [*outs, out], "rows": found.rows}
                    write_json(place, state)
                    continue
                reason = found
            log.warning("%s: %s is set aside: %s", self.problem, name, reason)
            self.set_aside[name] = reason
            state[name] = about | {"reason": reason}
            write_json(place, state)

    def _attempt(self, given: "_Input", out: Path) -> batch.Result | str:
        """The result of scoring a file, or the reason why it cannot be scored."""
        score = self.score  # a model that cannot be loaded is no fault of the file
        try:
            return score(given.path(), out)
        except UnavailableError:
            raise
        except (SourceError, DataError) as error:
            return str(error)
        except EvergreenError:
            raise
        except Exception as error:  # one file may not stop the others
            log.debug("%s", given.name, exc_info=error)
            return f"{type(error).__name__}: {' '.join(str(error).split())}"

    @cached_property
    def score(self) -> Callable[[Path, Path], batch.Result]:
        return batch_scoring.file_scorer(self.layout, self.params, self.problem, self.version, ledger=self.ledger, say=self.say)

    def _count(self, name: str, result: batch.Result) -> None:
        self.scored[name] = os.path.relpath(result.out, self.layout.root)
        self.rows += result.rows
        self.not_scored += result.not_scored

    # A query

    def score_query(self) -> None:
        """Score the rows of the query whose key is new, or all rows where it names no key."""
        staged, name = self.folder / "rows.parquet", f"{self.problem}.parquet"
        pending = self.folder / "pending.json"
        if not pending.exists():
            if not self._stage(staged):
                return
            out = f"{self.problem}-{_now().replace(':', '')}.parquet" if self.source.key else name
            write_json(pending, {"out": out})
        out = str(read_json(pending)["out"])
        try:
            self._count("query", self.score(staged, self.outputs / out))
        except EvergreenError:
            pending.unlink()  # the next run asks again; only a killed one scores the same rows
            raise
        self._remember(staged)
        pending.unlink()
        staged.unlink()

    def _stage(self, staged: Path) -> bool:
        """Write the rows to score to `staged`; False where there is none."""
        scratch = self.folder / "query"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            query = Source(sql=self.source.sql, url=self.source.url)
            found = scan_query(f"{self.problem}.schedule.input", query, scratch)
            if found is None:
                return False
            rows = found.collect()
        finally:
            shutil.rmtree(scratch)
        if (key := self.source.key) is not None:
            if key not in rows.columns:
                raise ParamsError(
                    f"params.yaml: {self.problem}.schedule.input.key = {key}: the query has no such column; "
                    f"it has {', '.join(rows.columns)}"
                )
            new = ~rows[key].cast(pl.String).is_in(self._keys()["key"].implode())
            self.known = rows.height - int(new.sum())
            rows = rows.filter(new.fill_null(True))
        if rows.is_empty():
            return False
        with writing(staged) as path:
            rows.write_parquet(path)
        return True

    def _keys(self) -> pl.DataFrame:
        place = self.folder / KEYS
        return pl.read_parquet(place) if place.exists() else pl.DataFrame(schema={"key": pl.String})

    def _remember(self, staged: Path) -> None:
        if self.source.key is not None:
            new = pl.read_parquet(staged, columns=[self.source.key]).select(key=pl.col(self.source.key).cast(pl.String))
            with writing(self.folder / KEYS) as path:
                pl.concat([self._keys(), new]).unique(maintain_order=True).write_parquet(path)


def run(layout: Layout, params: Params, problem: str, *, ledger: bool = True, say: Callable[[str], None] = log.info) -> Result:
    """Score what is new in schedule.input of `problem` with its champion, into schedule.output.

    `ledger`: also write the predictions there. A file that cannot be read or lacks columns is in `set_aside`.
    Raises ParamsError without an input, ModelError where nothing is deployed, LockedError where another process does the same,
    UnavailableError where a server does not respond.
    """
    source = params.section(problem).schedule.input
    if source is None:
        raise ParamsError(f"params.yaml: {problem}.schedule.score: {INPUT_NEEDED}")
    found = _Run(layout, params, problem, source, batch_scoring.chosen(layout, problem, None), ledger, say)
    with locking(found.folder.with_suffix(".lock"), f"{problem}: scheduled scoring"):
        found.folder.mkdir(exist_ok=True)
        if source.sql is not None:
            found.score_query()
        elif source.address is not None:
            found.score_files(_fetched(problem, source.address, found.folder / "fetched"))
        elif s3_files.is_s3(pattern := str(source.files)):
            found.score_files(_objects(problem, pattern, found.folder / "fetched"))
        else:
            found.score_files(_matching(layout, pattern, found.outputs))
    return Result(
        problem=problem,
        version=found.version,
        scored=found.scored,
        rows=found.rows,
        not_scored=found.not_scored,
        set_aside=found.set_aside,
        known=found.known,
    )


def _objects(problem: str, pattern: str, folder: Path) -> Iterator["_Input"]:
    """The objects of an address in S3, each copied into `folder` while it is scored. Their names are relative to its folder.

    Raises UnavailableError where the store does not answer, SourceError where it refuses or there is none.
    """
    label = f"{problem}.schedule.input.files"
    bucket, found = s3_files.find(label, "csv", pattern)
    fixed = re.split(r"[*?\[]", pattern.removeprefix(f"{s3_files.SCHEME}{bucket}/"))[0].rpartition("/")[0]
    for each in found:
        name = each.key.removeprefix(f"{fixed}/") if fixed else each.key

        def fetch(key: str = each.key) -> Path:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            path = folder / PurePosixPath(key).name
            s3_files.copy(label, f"{s3_files.SCHEME}{bucket}/{key}", path)
            return path

        yield _Input(name, each.etag, None, fetch)
    shutil.rmtree(folder, ignore_errors=True)


def _matching(layout: Layout, pattern: str, outputs: Path) -> Iterator["_Input"]:
    """The files of a pattern, in the order of their names, which are relative to its fixed part. Outputs are no inputs."""
    parts = Path(pattern).parts
    fixed = next((place for place, part in enumerate(parts) if any(mark in part for mark in "*?[")), len(parts) - 1)
    start = layout.root.joinpath(*parts[:fixed])
    found = start.glob(str(Path(*parts[fixed:]))) if start.is_dir() else ()
    for path in sorted(found):
        hidden = any(part.startswith(".") for part in path.relative_to(start).parts)
        if path.is_file() and not hidden and outputs.resolve() not in path.resolve().parents:
            yield _file(path.relative_to(start).as_posix(), path)


def _fetched(problem: str, address: str, folder: Path) -> Iterator["_Input"]:
    """The file at an address, in `folder` while it is scored. Raises UnavailableError where it cannot be had."""
    label = f"{problem}.schedule.input.address"
    if address.startswith("env:"):
        name = address.removeprefix("env:")
        if not (address := os.environ.get(name, "")).startswith(("http://", "https://")):
            raise ParamsError(f"params.yaml: {label} = env:{name}: the environment variable holds no http(s) address")
    path = folder / (Path(unquote(urlsplit(address).path)).name or "rows.csv")
    try:
        with writing(path) as scratch, urlopen(address, timeout=TIMEOUT_SECONDS) as response, scratch.open("wb") as file:
            shutil.copyfileobj(response, file)
    except URLError as error:
        why = getattr(error, "code", None) or error.reason
        raise UnavailableError(f"{label}: {urlsplit(address).hostname} does not give {path.name}: {why}") from None
    try:
        yield _file(path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _output(name: str, taken: Set[str]) -> str:
    """The name of the predictions of an input, which is none of `taken`: changed content gets another file."""
    named = Path(name if name.endswith(OUTPUTS) else f"{name}.csv")
    numbered = (named.with_name(f"{named.stem}.{number}{named.suffix}") for number in itertools.count(2))
    return next(each.as_posix() for each in itertools.chain([named], numbered) if each.as_posix() not in taken)


@dataclass(frozen=True)
class _Input:
    """A file to score."""

    name: str
    digest: str
    """Changes with the content."""
    reason: str | None
    """Why it cannot be read."""
    path: Callable[[], Path]
    """Where it lies, at once or after a download."""


def _file(name: str, path: Path) -> _Input:
    return _Input(name, *_digest(path), lambda: path)


def _digest(path: Path) -> tuple[str, str | None]:
    """The SHA-256 of a file, or an empty one and the reason why it cannot be read."""
    try:
        return sha256(path), None
    except OSError as error:
        return "", f"{path.name}: cannot be read: {error.strerror}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
