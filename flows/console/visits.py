"""One request to the console on its way to a view, and the responses of views."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, RedirectResponse, Response

from evergreen.flows.console.sign_in import Visitor
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from jinja2 import Environment

View = Callable[["Visit"], Response]


class NotFoundError(ParamsError):
    """Nothing is at this address, or the visitor may not see it."""


@dataclass(frozen=True)
class Visit:
    layout: Layout
    params: Params
    visitor: Visitor
    path: Mapping[str, str]
    """Parts of the address."""
    query: Mapping[str, str]
    form: Mapping[str, str]
    """Of a POST; empty otherwise."""
    address: str
    """Path of the request."""
    partial: bool
    """Whether the page asks for a part of itself."""
    token: str
    """For the forms of the page."""
    templates: "Environment"

    @property
    def problem(self) -> str:
        """The problem of the address. Raises NotFoundError where the visitor sees none of that name."""
        name = self.path["problem"]
        if name not in self.params.problems or not self.visitor.sees(name):
            raise NotFoundError(f"{name[:64]}: no problem of this name; go back to the overview")
        return name

    @property
    def problems(self) -> list[str]:
        """Those that the visitor sees."""
        return self.visitor.visible(self.params.problems)

    def render(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        text = self.templates.get_template(f"console/{template}").render(visit=self, **context)
        return HTMLResponse(text, status)


def whole_number(name: str, text: str) -> int | None:
    """The number or version of a field; None for an empty one. Raises ParamsError for any other text."""
    given = text.strip().removeprefix("v")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise ParamsError(f"{name} = {text[:40]!r}: must be a whole number")
    return int(given)


def back_to(path: str) -> Response:
    """Show another page after a POST, so that a reload does not send the form again."""
    return RedirectResponse(path, status_code=303)
