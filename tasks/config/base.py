"""Base model and common field types of the sections of params.yaml."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class _OneOrMany:
    def __get_pydantic_json_schema__(self, core: Any, make: Any) -> dict[str, Any]:
        """Allow a single value in place of a list of one."""
        many = make(core)
        return {"anyOf": [many["items"], many]}


Options = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), Field(min_length=1), _OneOrMany()]
"""One value, or a list of values to search over."""

Days = Annotated[int, Field(ge=1)]
"""A number of days."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
"""Name of a folder, stage and model: a letter, then letters, digits, _ and -; 64 characters at most."""


class Section(BaseModel):
    """A frozen section of params.yaml. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
