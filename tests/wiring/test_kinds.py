"""A new kind of problem is a folder in tasks/problems: hardly anything outside it asks which kind a problem is."""

import ast
from collections.abc import Iterator
from typing import get_args

import pytest

from evergreen.tasks.config.params import KindName
from tests import ROOT

MOST = 12
"""Places outside tasks/problems that may ask."""
KINDS = frozenset(get_args(KindName))
PROBLEMS = ROOT / "tasks" / "problems"
SHARED = ("evergreen.tasks.problems.base", "evergreen.tasks.problems.prediction_type")
"""Their protocols ask what a kind can do, not which one it is."""
CONFIG = "evergreen.tasks.config."


def places(tree: ast.Module) -> Iterator[int]:
    """Lines that ask for the kind: by its name, by a table of names, or by a class that only some kinds have."""
    named, owned = constants(tree), classes(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                found = any(is_kind(each, named) for each in (left, *others))
            case ast.Dict(keys=[_, _, *_] as keys):
                found = is_kind(ast.Tuple([each for each in keys if each]), named)
            case ast.MatchValue(value=value):
                found = is_kind(value, named)
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, asked]):
                found = any(isinstance(each, ast.Name) and each.id in owned for each in ast.walk(asked))
            case ast.Call(func=ast.Attribute(attr="kind"), args=args):
                found = any(is_kind(each, named) for each in args)
            case _:
                found = False
        if found:
            yield node.lineno  # pyright: ignore[reportAttributeAccessIssue]


def is_kind(node: ast.expr, named: frozenset[str]) -> bool:
    """Whether this is the name of a kind, several of them, or a constant that is."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return bool(node.elts) and all(is_kind(each, named) for each in node.elts)
    return (isinstance(node, ast.Constant) and node.value in KINDS) or (isinstance(node, ast.Name) and node.id in named)


def constants(tree: ast.Module) -> frozenset[str]:
    """Names at the top of a module that stand for kinds."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and is_kind(node.value, frozenset())]
    return frozenset(each.id for node in assigned for each in node.targets if isinstance(each, ast.Name))


def classes(tree: ast.Module) -> frozenset[str]:
    """Names of classes that only some kinds have: those of tasks/problems, sections, and forms of features."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            own = node.module.startswith("evergreen.tasks.problems.") and node.module not in SHARED
            some = {"Tabular", "Recommend", "Features", "Table", "Interactions"} if node.module.startswith(CONFIG) else set()
            found |= {each.asname or each.name for each in node.names if own or each.name in some}
    return frozenset(found) | frozenset(
        node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name in {"Tabular", "Recommend", "Table"}
    )


def test_hardly_anything_outside_the_kinds_asks_which_kind_it_is():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("flows", "monitoring", "serving", "tasks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if PROBLEMS not in path.parents
        for line in sorted(places(ast.parse(path.read_text())))
    ]
    assert len(found) <= MOST, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ('kind == "clustering"', 1),
        ('params.kind(name) != "recommendation"', 1),
        ('kind in ("classification", "regression")', 1),
        ('SOME = ("clustering",)\nkind in SOME', 1),
        ('{"classification": 1, "regression": 2}[kind]', 1),
        ('problems.kind("recommendation")', 1),
        ('match kind:\n    case "regression": pass', 1),
        ("from evergreen.tasks.config.params import Table\nisinstance(section.features, Table | None)", 1),
        ("from evergreen.tasks.problems.tabular.tabular_kind import TabularKind\nisinstance(kind, TabularKind)", 1),
        ("from evergreen.tasks.problems.base import Finishing\nisinstance(kind, Finishing)", 0),
        ('objective in ("regression", "regression_l1")', 0),
        ('kind == other and word == "group"', 0),
    ],
)
def test_a_place_is_counted_by_what_it_compares(text, asks):
    assert len(list(places(ast.parse(text)))) == asks
