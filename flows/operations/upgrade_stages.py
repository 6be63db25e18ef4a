"""Bring the stages of dvc.yaml that an earlier `evergreen init` wrote to those that it writes now.

A stage that equals one of the earlier templates (flows/templates/earlier, oldest first) is replaced. A stage that a person
edited stays, and what to change there is told. Sources of ingest, other stages, comments and plots stay as they are.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple, cast

from evergreen.tasks.core.paths import Layout, locking
from evergreen.tasks.release import pipeline_file

TEMPLATES = files("evergreen.flows") / "templates"

Items = frozenset[tuple[str, str]]
"""The parts of a stage: key, and its value or one value of its list."""


class StagesUpgrade(NamedTuple):
    changed: tuple[str, ...]
    """For each stage that is replaced or added, a line: its name, and what came and went by key."""
    edited: tuple[str, ...]
    """For each stage that a person edited and that lacks something, a line: its name, and what to change by key."""


NOTHING = StagesUpgrade((), ())


def run(layout: Layout, dry_run: bool = False) -> StagesUpgrade:
    """Upgrade dvc.yaml; with `dry_run` only tell. Nothing is done where the project has none.

    Raises ProjectError where dvc.yaml is no YAML with stages, LockedError while a training runs.
    """
    if not (layout.root / "dvc.yaml").is_file():
        return NOTHING
    with nullcontext() if dry_run else locking(layout.var / "train.lock", "upgrade"):
        yaml, whole = pipeline_file.read(layout)
        done = _upgrade(whole["stages"])
        if done.changed and not dry_run:
            pipeline_file.write(layout, yaml, whole)
    return done


def _upgrade(stages: Any) -> StagesUpgrade:
    """Upgrade `stages` in place."""
    present, earlier = _stages(TEMPLATES / "dvc.yaml"), _earlier()
    changed, edited, missing = list[str](), list[str](), list[str]()
    for name, wanted in present.items():
        if name not in stages:
            missing.append(name)
            continue
        own, aim = _items(name, stages[name]), _items(name, wanted)
        forms = [_items(name, each[name]) for each in earlier if name in each]
        if own in forms and own != aim:
            changed.append(f"{name}: {_told(aim - own, own - aim)}")
            _replace(stages[name], wanted)
            continue
        own, aim, *forms = map(_named, (own, aim, *reversed(forms)))
        origin = min((aim, *forms), key=lambda form: len(form ^ own))
        lacks, extra = aim - origin - own, (origin - aim) & own
        if lacks or extra:
            edited.append(f"{name}: {_told(lacks, extra, 'add {}', 'remove {}')}")
    for name in missing:
        stages[name] = present[name]
    changed += [f"{name}: new" for name in missing]
    return StagesUpgrade(tuple(changed), tuple(edited))


def _earlier() -> list[Mapping[str, Any]]:
    return [_stages(each) for each in sorted((TEMPLATES / "earlier").iterdir(), key=lambda each: int(Path(each.name).stem))]


def _stages(template: Traversable) -> Mapping[str, Any]:
    return pipeline_file.parse(template.read_text(encoding="utf8"))[1]["stages"]


def _items(name: str, stage: Any) -> Items:
    """The parts of a stage; the sources of ingest are not among them."""
    if not isinstance(stage, dict):
        return frozenset()
    given = cast("dict[str, Any]", stage)
    loop = {("foreach", str(given["foreach"]))} if "foreach" in given else set[tuple[str, str]]()
    body = {key: value for key, value in _body(given).items() if (name, key) != ("ingest", "deps")}
    return frozenset(loop | {(key, _text(each)) for key, value in body.items() for each in _values(value)})


def _body(stage: Any) -> Any:
    return stage["do"] if isinstance(stage.get("do"), dict) else stage


def _values(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    """One value of a list: a path or a key, with its options if it has any."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{path}: {options}" for path, options in cast("dict[str, Any]", value).items())


def _replace(own: Any, wanted: Any) -> None:
    """Give `own` the values of `wanted` that differ; its other keys stay as they are written."""
    body = _body(own)
    for key, value in _body(wanted).items():
        if list(map(_text, _values(body.get(key)))) != list(map(_text, _values(value))):
            body[key] = value


def _named(items: Items) -> Items:
    """Without the options of outputs: whether one is cached or persists is the user's own matter."""
    return frozenset((key, value.split(": ")[0]) for key, value in items)


def _told(more: Items, less: Items, come: str = "{} added", gone: str = "{} removed") -> str:
    """What comes and goes, by key: "params: project.seed added, project removed"."""
    lines = dict[str, list[str]]()
    for word, items in ((come, more), (gone, less)):
        for key, value in sorted(_named(items)):
            lines.setdefault(key, []).append(word.format(value))
    return "; ".join(f"{key}: {', '.join(said)}" for key, said in sorted(lines.items()))
