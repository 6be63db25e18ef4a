"""One page for each section of params.yaml, from the JSON schema that `evergreen params --schema` prints."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from docs.generate.markdown import anchor, code, table

FOLDER = "reference/params"
Schema = Mapping[str, Any]

TOP = ("project", "ingest", "validate", "problems", "serve")
"""Keys of the file, in its order."""
PROBLEM = (
    "features",
    "pipeline",
    "lists",
    "tune",
    "train",
    "evaluate",
    "gate",
    "answers",
    "rollout",
    "monitor",
    "retrain",
    "schedule",
)
"""Keys of a problem's section, in the order in which a person meets them."""
FORMS = {
    "Features": "features made from events",
    "Table": "features of a plain table",
    "Interactions": "features of a recommender",
    "Pipeline": "pipeline of classification, regression and clustering",
    "Sources": "pipeline of a recommender",
}
"""Definitions that share a key with another one."""
ABOUT = {
    "project": "The project as a whole.",
    "problems": "Problem -> its kind: classification, regression, clustering or recommendation.",
    "features": "What a model sees: a plain table, aggregates of events, or purchases.",
    "pipeline": "Preprocessing inside the fold; for a recommender, how a list is made.",
    "tune": "The search: which configurations are tried, for how long, and which one wins.",
    "train": "What the final model learns from.",
    "evaluate": "How a model is judged, diagnosed and explained.",
    "gate": "When a challenger replaces the champion.",
}
"""Key -> what it holds, where the schema does not say so in one line."""


def schema() -> Schema:
    from evergreen.tasks.config import loading

    return json.loads(loading.schema())


def pages() -> Iterator[tuple[str, str]]:
    """(path in the site, Markdown) of the index and of each section."""
    whole = schema()
    yield f"{FOLDER}/index.md", index(whole)
    for key in TOP:
        if key != "problems":
            yield f"{FOLDER}/{key}.md", page(whole, key, key, [definition(whole["properties"][key])])
    for key in PROBLEM:
        yield f"{FOLDER}/{key}.md", page(whole, key, f"NAME.{key}", [name for name, _ in forms(whole, key)])


def forms(whole: Schema, key: str) -> list[tuple[str, str]]:
    """(definition, kind of problem) of each shape that `key` of a problem's section may have."""
    found: dict[str, str] = {}
    for name in ("Tabular", "Recommend"):
        field = whole["$defs"][name]["properties"].get(key)
        for each in refs(field) if field else ():
            found.setdefault(each, name)
    return list(found.items())


def index(whole: Schema) -> str:
    rows = [(_link(key), ABOUT.get(key) or _about(whole, whole["properties"][key])) for key in TOP]
    inner = [(_link(key), ABOUT.get(key) or _doc(whole, forms(whole, key)[0][0])) for key in PROBLEM]
    return INDEX.format(top=table(("key", "holds"), rows), inner=table(("key", "holds"), inner))


INDEX = """\
# params.yaml

`params.yaml` holds every number a person may change. Unknown keys and wrong values are refused with the nearest right
name. Dates stand in quotes. `evergreen params` checks the file and prints it with every default filled in.

These pages come from the JSON schema, `evergreen params --schema`. An editor reads it too: write the schema to
`var/schema.json`, and put `# yaml-language-server: $schema=var/schema.json` at the top of `params.yaml`.

## Keys of the file

{top}

Each name under `problems` also has a section of its own at the top level of the file, called NAME below.

## Keys of a problem

{inner}

A list in place of one value of `pipeline` makes that value part of the search.
"""


def _link(key: str) -> str:
    return code(key) if key == "problems" else f"[`{key}`]({key}.md)"


def page(whole: Schema, key: str, place: str, names: list[str]) -> str:
    """A table for each definition, and below it those that it refers to. `place`: where the key stands."""
    parts = [f"# {key}\n", f"`{place}` in `params.yaml`. {ABOUT.get(key, '')}\n"]
    shown: list[str] = []
    waiting = list(names)
    for name in waiting:
        shown.append(name)
        waiting += [each for each in _below(whole["$defs"][name]) if each not in waiting]
    for name in shown:
        if len(names) > 1 or name not in names:
            parts.append(f"\n## {FORMS.get(name, name)}\n")
        parts += [_doc(whole, name) + "\n", section(whole, name, set(shown))]
    return "\n".join(parts) + "\n"


def section(whole: Schema, name: str, here: Collection[str]) -> str:
    """The keys of one definition. `here`: definitions on the same page, which are linked."""
    found = whole["$defs"][name]
    required = found.get("required", ())
    rows = [
        (code(key), type_of(field, here), _default(field, key in required), _meaning(whole, field))
        for key, field in found["properties"].items()
    ]
    return table(("key", "type", "default", "meaning"), rows) + "\n"


def _meaning(whole: Schema, field: Schema) -> str:
    return field.get("description") or " ".join(_doc(whole, name) for name in refs(field))


def type_of(field: Schema, here: Collection[str] = ()) -> str:
    """In words, with links to definitions on the same page.

    >>> type_of({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'integer, at least 1; or null'
    """
    if "$ref" in field:
        name = definition(field)
        return f"[{FORMS.get(name, name)}](#{anchor(FORMS.get(name, name))})" if name in here else name
    if "enum" in field:
        return " | ".join(code(_yaml(each)) for each in field["enum"])
    if "const" in field:
        return code(_yaml(field["const"]))
    if "anyOf" in field or "oneOf" in field:
        inner = list(dict.fromkeys(type_of(each, here) for each in field.get("anyOf") or field["oneOf"]))
        if len(inner) == 2 and inner[1] == f"list of {inner[0]}":
            return f"{inner[0]}; or a list to search"
        return "; or ".join(inner)
    kind = field.get("type", "anything")
    if kind == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", ())), {})
        return f"list of {type_of(items, here)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        inner = inner or next(iter(field.get("patternProperties", {}).values()), None)
        return f"mapping of name to {type_of(inner, here)}" if isinstance(inner, Mapping) else "mapping"
    words = {"string": "text", "boolean": "true or false"}.get(kind, kind)
    if field.get("format") == "date":
        words = "date"
    return ", ".join([words, *_limits(field)])


LIMITS = {
    "minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below",
}  # fmt: skip


def _limits(field: Schema) -> Iterator[str]:
    for key, words in LIMITS.items():
        if key in field:
            yield f"{words} {field[key]:g}"


def _default(field: Schema, required: bool) -> str:
    if required:
        return "required"
    if "default" not in field:
        return ""
    value = field["default"]
    if isinstance(value, dict) and value:
        return "see below"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return code(_yaml(value))


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def definition(field: Schema) -> str:
    """The name of the first definition that a field refers to."""
    return next(iter(refs(field)))


def refs(field: Any) -> Iterator[str]:
    """Names of all definitions that a field refers to directly."""
    if isinstance(field, Mapping):
        if "$ref" in field:
            yield field["$ref"].rpartition("/")[2]
        for name, inner in field.items():
            if name not in ("discriminator", "default"):
                yield from refs(inner)
    elif isinstance(field, list):
        for inner in field:
            yield from refs(inner)


def _below(found: Schema) -> list[str]:
    return list(dict.fromkeys(refs(found["properties"])))


def _about(whole: Schema, field: Schema) -> str:
    return field.get("description") or _doc(whole, definition(field))


def _doc(whole: Schema, name: str) -> str:
    return " ".join(whole["$defs"][name].get("description", "").split())
