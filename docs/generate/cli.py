"""One page for each verb of the command line, from its Typer declarations."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.generate.markdown import code, table

FOLDER = "reference/cli"
COMMON = ("--root", "--json", "--debug")
"""Options of every command; the index explains them once."""
SHOWN = re.compile(r"^evergreen ([a-z]+)", re.MULTILINE)


def commands() -> dict[str, Any]:
    """Verb -> its command, in the order of `evergreen --help`."""
    import typer

    from evergreen.flows.cli.main import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def pages(docs: Path) -> Iterator[tuple[str, str]]:
    """(path in the site, Markdown) of the index and of each verb. `docs`: the folder of the hand-written pages."""
    found, used = commands(), mentions(docs)
    yield f"{FOLDER}/index.md", index(found)
    for verb, command in found.items():
        yield f"{FOLDER}/{verb}.md", page(verb, command, used.get(verb, {}))


def index(found: Mapping[str, Any]) -> str:
    """All verbs by group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for verb, command in found.items():
        groups.setdefault(group(command), []).append((f"[`evergreen {verb}`]({verb}.md)", " ".join(command.help.split())))
    parts = ["# Command line\n", INTRODUCTION]
    for name, rows in groups.items():
        parts += [f"\n## {name}\n", table(("command", "does"), rows)]
    return "\n".join(parts) + "\n"


INTRODUCTION = """\
`evergreen` finds the project by walking up from the current folder to the nearest `params.yaml`. Every command takes
these options:

| option | does |
| --- | --- |
| `--root DIR` | uses the project in or above `DIR` |
| `--json` | prints the result as one JSON object on stdout, and nothing else there |
| `--debug` | shows the traceback of an expected error |
| `--help` | describes the command |

A command exits with 0 only on success. An expected error is one line on stderr and exit status 1; see
[Errors](../errors.md)."""


def page(verb: str, command: Any, used: Mapping[str, str]) -> str:
    """The page of one verb. `used`: path of a page that shows the verb -> its title."""
    parts = [f"# evergreen {verb}\n", _paragraph(command.help)]
    inner = getattr(command, "commands", None)
    if inner:
        for name, each in inner.items():
            parts += [f"\n## {verb} {name}\n", _paragraph(each.help), _usage(f"{verb} {name}", each)]
    else:
        parts.append(_usage(verb, command))
    if used:
        links = ", ".join(f"[{title}](../../{path})" for path, title in used.items())
        parts.append(f"\nUsed in: {links}.")
    return "\n".join(parts) + "\n"


def group(command: Any) -> str:
    """The heading of `evergreen --help` that a command stands under."""
    panel = command.rich_help_panel
    return panel if isinstance(panel, str) else "Commands"


def mentions(docs: Path) -> dict[str, dict[str, str]]:
    """Verb -> path of each hand-written page that shows it -> title of the page."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(docs.rglob("*.md")):
        text = path.read_text(encoding="utf8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for verb in SHOWN.findall(block):
                found.setdefault(verb, {})[path.relative_to(docs).as_posix()] = title[1] if title else path.stem
    return found


def _usage(verb: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.opts[0] not in COMMON]
    words = [_metavar(each) for each in arguments]
    words += [f"{each.opts[0]} {_type(each)}".strip() for each in options if each.required]
    usage = " ".join([f"evergreen {verb}", *words, "[OPTIONS]"])
    parts = [f"\n```text\n{usage}\n```\n"]
    if arguments:
        parts += [table(("argument", "meaning"), [(code(_metavar(each)), each.help or "") for each in arguments]), ""]
    if options:
        rows = [(code(f"{each.opts[0]} {_type(each)}".strip()), _default(each), each.help or "") for each in options]
        parts += [table(("option", "default", "meaning"), rows), ""]
    return "\n".join(parts)


def _metavar(parameter: Any) -> str:
    name = parameter.name.rstrip("_").upper()
    many = "..." if parameter.nargs == -1 else ""
    return f"{name}{many}" if parameter.required else f"[{name}]{many}"


def _type(parameter: Any) -> str:
    if parameter.is_flag:
        return ""
    annotation = parameter.type_descriptor.annotation
    inner = getattr(annotation, "__args__", (annotation,))[0]
    name = getattr(inner, "__name__", str(inner))
    return {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}.get(name, "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.is_flag or parameter.default in (None, "", ()):
        return ""
    return code(str(parameter.default))


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split()) + "\n"
