"""Reading params.yaml, with the error messages for users, and its JSON schema.

A message gives file, key, value and rule, and for an unknown name the most similar valid one.
"""

import json
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.params import FORMS, SECTIONS, Params, Problem, Recommend, Tabular
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest, shorten

TOP_LEVEL_KEYS = ("project", "ingest", "validate", "problems", "serve")
RESERVED_NAMES = (*TOP_LEVEL_KEYS, "validation", "all")
"""Names that a problem cannot have: top-level keys, the validation report, the row of the shared steps."""
NAME_RULE = "a name starts with a letter, then has letters (a-z), digits, _ and -, 64 at most; choose another one"


def load(path: Path) -> Params:
    """Read and check params.yaml; the same text is checked once.

    Raises ParamsError for invalid YAML, a duplicate or unknown key, a value that breaks a rule, a problem without a section, a
    section without a problem, and a table that is not under `ingest`.
    """
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return _checked(path, text)


@lru_cache(maxsize=8)
def _checked(path: Path, text: str) -> Params:
    raw = _parse(path, text)
    names = raw.get("problems") or {}
    if not isinstance(names, dict):
        raise ParamsError(
            f"{path.name}: problems = {names!r}: needs a mapping of problem to kind, such as {{spend: regression}}"
        )
    for key in raw:
        if key not in TOP_LEVEL_KEYS and key not in names:
            suggestion = nearest(key, [*TOP_LEVEL_KEYS, *names])
            raise ParamsError(f"{path.name}: {key}: unknown key{suggestion}; a problem also needs a line under problems")
    try:
        params = Params.model_validate({key: raw[key] for key in TOP_LEVEL_KEYS if key in raw})
        sections = {name: _section(path, name, kind, raw) for name, kind in params.problems.items()}
    except ValidationError as error:
        raise ParamsError(_message(path.name, (), Params, error)) from None
    params = params.model_copy(update={"sections": sections})
    _check_tables(path.name, params)
    return params


def _unreadable(path: Path, error: Exception) -> ParamsError:
    advice = "Allow this user to read it." if isinstance(error, PermissionError) else "It must be UTF-8 text."
    return ParamsError(f"{path}: cannot be read: {' '.join(str(error).split())}. {advice}")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ParamsError(
            f"{path.name}:{where}: {str(error.problem).splitlines()[0]}. A key may occur once; indent with spaces."
        ) from None
    except YAMLError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise ParamsError(f"{path.name}: invalid date or number: {error}. Put dates in quotes.") from None
    if not isinstance(raw, dict):
        raise ParamsError(
            f"{path.name}: needs the keys {', '.join(TOP_LEVEL_KEYS)} and a section per problem; found {type(raw).__name__}"
        )
    _refuse_bare_dates(path.name, raw)
    return raw


def _refuse_bare_dates(file: str, value: Any, key: str = "") -> None:
    """DVC reads the same file and does not support YAML dates."""
    if isinstance(value, date):
        raise ParamsError(f'{file}: {key} = {value}: dates need quotes; write "{value}"')
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_bare_dates(file, inner, f"{key}.{name}".lstrip("."))


def _section(path: Path, name: str, kind: str, raw: dict[str, Any]) -> Problem:
    if name in RESERVED_NAMES:
        raise ParamsError(f"{path.name}: problems.{name}: {name} is a reserved name; choose another one")
    if name not in raw:
        raise ParamsError(f"{path.name}: problems.{name}: has no section {name} at the top level of the file; add one")
    try:
        return SECTIONS[kind].model_validate(raw[name])
    except ValidationError as error:
        raise ParamsError(_message(path.name, (name,), SECTIONS[kind], error)) from None


def _check_tables(file: str, params: Params) -> None:
    """Raise ParamsError for a table that is not under `ingest`."""
    for table in params.validate_:
        if table not in params.ingest:
            raise ParamsError(f"{file}: validate.{table}: no such table under ingest{nearest(table, params.ingest)}")
        for column, reference in params.validate_[table].references.items():
            if (known := reference.to.split(".")[0]) not in params.ingest:
                where = f"{file}: validate.{table}.references.{column}.to = {reference.to}"
                raise ParamsError(f"{where}: no table {known} under ingest{nearest(known, params.ingest)}")
    for name, section in params.sections.items():
        for table in section.features.tables:
            if table not in params.ingest:
                raise ParamsError(f"{file}: {name}.features: table {table} is not under ingest{nearest(table, params.ingest)}")
        if section.predicts == "rows" and section.features.by_cutoff is True and section.answers.features == "fresh":
            _check_unique(file, name, params, section.features.event_tables)


def _check_unique(file: str, problem: str, params: Params, tables: list[str]) -> None:
    for table in tables:
        if table not in params.validate_ or not params.validate_[table].unique:
            raise ParamsError(
                f"{file}: validate.{table}.unique: is missing; {problem}.answers.features = fresh needs it, so that a row that "
                "is both received and in the table counts once. Name the columns that identify a row."
            )


def _message(file: str, prefix: tuple[str, ...], model: type[Section], error: ValidationError) -> str:
    """One line for the first error: file, key, value, rule, most similar valid name."""
    first = next((each for each in error.errors() if each["type"] == "extra_forbidden"), error.errors()[0])
    location = [part for part in first["loc"] if not str(part).startswith("function-")]
    if location[-1:] == ["[key]"]:
        return f"{file}: {location[0]}: {str(location[-2])!r}: {NAME_RULE}"
    key = ".".join(str(part) for part in (*prefix, *_without_tags(location)))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        suggestion = nearest(str(location[-1]), _field_names(model, location[:-1]))
        return f"{file}: {key} = {shorten(first['input'])}: unknown key{suggestion}{more}"
    if first["type"] == "missing":
        return f"{file}: {key}: is missing; add it{more}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should be", "must be")
    return f"{file}: {key} = {shorten(first['input'])}: {rule}{more}"


def _without_tags(location: list[int | str]) -> list[int | str]:
    """`location` as in the file: pydantic adds the tag of the form after `features`."""
    return [part for at, part in enumerate(location) if not (at and location[at - 1] == "features" and part in FORMS)]


def _field_names(model: type[BaseModel], location: list[int | str]) -> list[str]:
    """Field names of the section at `location` within `model`."""
    for at, part in enumerate(location):
        if at and location[at - 1] == "features" and part in FORMS:
            model = FORMS[str(part)]
            continue
        field = next((field for name, field in model.model_fields.items() if part in (name, field.alias)), None)
        model = (field and _model_in(field.annotation)) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model within a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def schema() -> str:
    """The JSON schema of params.yaml."""
    whole = Params.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    whole["properties"].pop("sections")
    tabular, recommend = (part.model_json_schema(ref_template="#/$defs/{model}") for part in (Tabular, Recommend))
    definitions = whole.setdefault("$defs", {})
    for name, part in (("Tabular", tabular), ("Recommend", recommend)):
        definitions.update(part.pop("$defs", {}))
        definitions[name] = part
    whole["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/Tabular"}, {"$ref": "#/$defs/Recommend"}]}
    return json.dumps(whole, indent=2)
