"""One file per kind of problem, behind the protocol in base.py."""

from importlib import import_module

from tasks.params import KindName
from tasks.problems.base import Kind


def kind(name: KindName) -> Kind:
    """The kind called `name`; only its own module (and the libraries it owns) is imported."""
    return import_module(f"tasks.problems.{name}").KIND
