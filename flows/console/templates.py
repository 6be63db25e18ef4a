"""The templates of the console, with the filters and the parts of the report page."""

from urllib.parse import quote

from jinja2 import ChoiceLoader, PackageLoader

from evergreen.flows.prefect_runtime import server
from evergreen.monitoring.report import page


def segment(text: object) -> str:
    """A value as one part of an address.

    >>> segment("../a b")
    '..%2Fa%20b'
    """
    return quote(str(text), safe="")


def environment() -> page.Environment:
    """The templates of flows/templates and of the page; a page that is rendered anew looks like the report."""
    found = page.environment()
    assert found.loader is not None
    found.loader = ChoiceLoader([PackageLoader("evergreen.flows"), found.loader])
    found.filters["segment"] = segment  # pyright: ignore[reportUnknownMemberType]
    found.globals["prefect_page"] = server.run_page  # pyright: ignore[reportUnknownMemberType]
    return found
