"""Options of `evergreen init`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest

NONE = "none"
"""--entity none and --time none: no column has that role."""


@dataclass(frozen=True)
class InitOptions:
    """Options of `evergreen init`. None or empty: to be inferred."""

    target: str | None = None
    kind: KindName | None = None
    time: str | None = None
    entity: str | None = None
    drop: tuple[str, ...] = ()
    user: str | None = None
    item: str | None = None
    basket: str | None = None
    order: str | None = None
    refused: tuple[str, ...] = ()
    """Roles that no column shall have: entity, time."""

    def without(self, names: Sequence[str]) -> "InitOptions":
        """With NONE as entity or time, unless a column is called so."""
        taken = {name: None for name in ("entity", "time") if getattr(self, name) == NONE and NONE not in names}
        return replace(self, **taken, refused=tuple(taken)) if taken else self

    def columns(self) -> dict[str, str]:
        """Option -> column."""
        named = {name: getattr(self, name) for name in ("target", "time", "entity", "user", "item", "basket", "order")}
        return {name: column for name, column in named.items() if column is not None}


def parse_kind(name: str | None) -> KindName | None:
    """Raises ParamsError for an unknown kind."""
    kinds: tuple[KindName, ...] = get_args(KindName)
    if name is not None and name not in kinds:
        raise ParamsError(f"--kind {name}: no such kind{nearest(name, kinds)}")
    return next((each for each in kinds if each == name), None)
