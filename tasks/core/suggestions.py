"""Suggestions for unknown names: "did you mean …?"."""

import difflib
from collections.abc import Iterable

from evergreen.tasks.core.errors import ParamsError


def nearest(name: str, known: Iterable[object]) -> str:
    """End of a message about the unknown `name`: the most similar of the `known` names, or all of them.

    >>> nearest("n_trails", ["n_trials", "folds"]), nearest("x", ["n_trials", "folds"])
    ('; did you mean n_trials?', '; known are n_trials, folds')
    """
    names = [str(each) for each in known]
    found = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(names) or 'none'}"


def require(name: str, known: Iterable[str], where: str) -> None:
    """Raise ParamsError, with the most similar name, if the feature `name` at `where` is not `known`."""
    names = list(known)
    if name not in names:
        raise ParamsError(f"{where} = {name}: no such feature{nearest(name, names)}")


def shorten(value: object) -> str:
    """`value` as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
