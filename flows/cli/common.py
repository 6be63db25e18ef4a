"""What every command of `evergreen` shares: its options, how it finds the project, and how it prints."""

import getpass
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.tasks.core.errors import ParamsError

if TYPE_CHECKING:
    from evergreen.tasks.config.params import Params
    from evergreen.tasks.core.paths import Layout

Root = Annotated[Path, typer.Option("--root", help="Folder of params.yaml, or a folder below it.", show_default="here")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an expected error.")]
Name = Annotated[str, typer.Argument(help="A name under problems in params.yaml.")]
Names = Annotated[
    list[str] | None, typer.Argument(help="Names under problems in params.yaml; default: all.", show_default=False)
]
Version = Annotated[int | None, typer.Option("--version", help="Version that predicts; default: the champion.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="Recommendation: use histories up to that day (YYYY-MM-DD).")]
HERE = Path()
INTERRUPTED = 130
"""Exit status after Ctrl-C."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with --root, --json and --debug. It gets the keywords `root` and `as_json`; `main` reads --debug itself."""
    given = inspect.signature(command)
    own = [each for each in given.parameters.values() if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
        for name, default, annotation in (("root", HERE, Root), ("as_json", False, Json), ("debug", False, Debug))
    ]

    def run(debug: bool, **values: Any) -> None:
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = given.replace(parameters=[*own, *shared])  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
    return run


def one_thread() -> None:
    """Let numeric libraries use one thread, unless the environment says otherwise: steps run side by side."""
    for name in THREADS:
        os.environ.setdefault(name, "1")


def find(root: Path) -> "Layout":
    from evergreen.tasks.core.paths import find

    return find(root)


def open_problem(root: Path, name: str) -> "tuple[Layout, Params]":
    """The project around `root` and its params. Raises ParamsError where they hold no problem `name`."""
    place = find(root)
    known = read_params(place)
    known.section(name)
    return place, known


def read_params(place: "Layout") -> "Params":
    from evergreen.tasks.config.loading import load

    return load(place.params)


def me() -> str:
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return "unknown"


def as_day(text: str | None, option: str = "--as-of") -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ParamsError(f"{option} {text}: not a day; write it as YYYY-MM-DD") from None


def as_object(option: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ParamsError(f"{option} {text}: invalid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ParamsError(f"{option} {text}: needs an object, such as {{}}")
    return found


@contextmanager
def local_file(data: str | Path, option: str = "--data") -> Iterator[Path]:
    """The file that an option names; an object in S3 as a copy."""
    if not isinstance(data, str) or not data.startswith("s3://"):
        yield Path(data)
        return
    from evergreen.tasks.data import s3_files

    with TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(data).name
        s3_files.copy(option, data, path)
        yield path


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def as_moment(text: str) -> datetime:
    """The moment named, in UTC; of a day, its end."""
    from datetime import UTC, time

    try:
        found = datetime.fromisoformat(text)
        found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ParamsError(f"--at {text}: is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM)") from None
    if len(text) == len("YYYY-MM-DD"):
        found = datetime.combine(found, time.max)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def say(line: str) -> None:
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(_finite(value), default=str))


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value != value else value


def number(value: float | None) -> str:
    """Four significant digits, no exponent for what people read as money or as a share."""
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def short(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def print_table(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="right" if name in ("baseline", "CPU s") else "left", overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console = Console()
    console.width = console.width if console.is_terminal else 200
    console.print(table)
