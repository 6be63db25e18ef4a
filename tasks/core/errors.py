"""The errors Evergreen expects.

    EvergreenError
    ├── ParamsError        params.yaml is wrong: key, value, rule, nearest right name
    ├── SourceError        a table cannot be read
    │   └── AwayError      its server does not answer: the one error that may be gone at the next try
    ├── DataError          a table was read and breaks a rule that stops the run
    │   ├── LeakError      a feature uses what was not known at its cutoff
    │   └── RequestError   a request breaks a rule: which field, which value, which rule
    ├── StepError          a step failed in its own process
    ├── BusyError          somebody else is at work on the same files
    ├── SpaceError         a disk is full or a folder cannot be written
    ├── ModelError         a model cannot be saved, trusted or loaded
    │   └── CompileError   a model has no compiled form; the pipeline itself answers then
    └── ProjectError       the folder is not a project: no params.yaml, no git, no DVC

Every message says where, which value, the rule, and what to do next, on one line. The command line prints it and exits with
its `code`.
"""

from typing import Any


class EvergreenError(Exception):
    """Base of every error that a person can mend."""

    code = 1
    """Exit status of the process that it ends."""


class ParamsError(EvergreenError): ...


class SourceError(EvergreenError): ...


class AwayError(SourceError):
    code = 75


class DataError(EvergreenError): ...


class LeakError(DataError): ...


class RequestError(DataError):
    def __init__(self, field: str, rule: str, *value: Any) -> None:
        """`value`: none where the field is not there."""
        self.row: int | None = None
        """Which of several, counted from 0."""
        self.field, self.rule, self.value = _cut(field), rule, _shown(*value) if value else None
        super().__init__(f"{self.field} = {self.value}: {rule}" if value else f"{self.field}: {rule}")


def _shown(value: Any) -> str:
    return _cut(repr(value) if isinstance(value, str) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


class StepError(EvergreenError): ...


class BusyError(EvergreenError): ...


class SpaceError(EvergreenError): ...


class ModelError(EvergreenError): ...


class CompileError(ModelError): ...


class ProjectError(EvergreenError): ...
