"""What every section of params.yaml is made of."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class _OneOrMany:
    def __get_pydantic_json_schema__(self, core: Any, make: Any) -> dict[str, Any]:
        """In the schema too, one value may stand for a list of one."""
        many = make(core)
        return {"anyOf": [many["items"], many]}


Options = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), Field(min_length=1), _OneOrMany()]
"""One value, or a list of values to search over."""

Days = Annotated[int, Field(ge=1)]
"""A number of days."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
"""Names a folder, a stage, a model: a letter, then letters, digits, _ and -; 64 at most."""


class Section(BaseModel):
    """A frozen part of params.yaml; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
