"""A transaction on a database of the project's own, and what to say where the database refuses."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from tasks.errors import ProjectError


@contextmanager
def transaction(engine: sa.Engine, of: str, through: tuple[type[SQLAlchemyError], ...] = ()) -> Iterator[sa.Connection]:
    """All or nothing. `of`: what the database holds; `through`: errors that are raised as they are.

    Raises ProjectError, in one line, where the database refuses.
    """
    try:
        with engine.begin() as link:
            yield link
    except through:
        raise
    except SQLAlchemyError as error:
        raise unusable(engine, of, error) from error


def unusable(engine: sa.Engine, of: str, error: Exception) -> ProjectError:
    """The one line, without the address's password."""
    shown = engine.url.render_as_string(hide_password=True)
    return ProjectError(
        f"{shown}: the database of {of} cannot be used: {str(error).splitlines()[0]}. "
        "Check the address, and that the place is not full and can be written."
    )
