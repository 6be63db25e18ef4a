"""The exceptions that Evergreen raises on purpose.

    EvergreenError
    ├── ParamsError              params.yaml is invalid: key, value, rule, nearest valid name
    ├── SourceError              a table cannot be read
    │   └── UnavailableError     its server does not respond; the only error worth retrying
    ├── DataError                a table breaks a rule that stops the run
    │   ├── LeakError            a feature uses data from after its cutoff
    │   └── RequestError         a request breaks a rule: field, value, rule
    ├── StepError                a step failed in its own process
    ├── LockedError              another process holds the lock on the same files
    ├── StorageError             a disk is full or a folder is not writable
    ├── ModelError               a model cannot be saved, trusted or loaded
    │   ├── CompileError         a model cannot be exported to ONNX; the scikit-learn pipeline serves it
    │   └── RegistryError        the model registry, or the store of its files, does not answer
    └── ProjectError             the project folder is incomplete or damaged: params.yaml, git, DVC, state
        └── RefusedValueError    a database refuses a value of a row; other rows can be stored

Each message is one line with the place, the value, the rule and the next action. The command line prints it and exits with the
exception's `code`.
"""

from typing import Any


class EvergreenError(Exception):
    """Base class. The user can fix the cause."""

    code = 1
    """Exit status of the process."""


class ParamsError(EvergreenError): ...


class SourceError(EvergreenError):
    def __str__(self) -> str:
        return _one_line(super().__str__())


class UnavailableError(SourceError):
    code = 75
    """EX_TEMPFAIL of sysexits.h: a retry may succeed."""


class DataError(EvergreenError):
    def __str__(self) -> str:
        return _one_line(super().__str__())


class LeakError(DataError): ...


class RequestError(DataError):
    def __init__(self, field: str, rule: str, *value: Any) -> None:
        """`value`: the invalid value; omit it for a missing field."""
        self.row: int | None = None
        """Index of the row in a request with several rows."""
        self.field, self.rule, self.value = _cut(field), rule, _shown(*value) if value else None
        super().__init__(f"{self.field} = {self.value}: {rule}" if value else f"{self.field}: {rule}")


def _one_line(text: str) -> str:
    """With escapes for line breaks and other unprintable marks of a user's names and values."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def _shown(value: Any) -> str:
    return _cut(repr(value) if isinstance(value, str) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


class StepError(EvergreenError): ...


class LockedError(EvergreenError): ...


class StorageError(EvergreenError): ...


class ModelError(EvergreenError): ...


class CompileError(ModelError): ...


class RegistryError(ModelError): ...


class ProjectError(EvergreenError): ...


class RefusedValueError(ProjectError): ...
