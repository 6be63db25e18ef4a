"""What several steps do to tables: rename them and their columns, where they are there, and build them again."""

from collections.abc import Mapping

import sqlalchemy as sa

from evergreen.tasks.core.schema_revision import columns


def quote(link: sa.Connection, name: str) -> str:
    return link.dialect.identifier_preparer.quote(name)


def rename_columns(link: sa.Connection, table: str, names: Mapping[str, str]) -> None:
    """Old name -> new name; columns that are not there are left out."""
    for old in names.keys() & columns(link, table):
        new = quote(link, names[old])
        link.exec_driver_sql(f"ALTER TABLE {quote(link, table)} RENAME COLUMN {quote(link, old)} TO {new}")


def rename_table(link: sa.Connection, old: str, new: str) -> None:
    """Where a later version has made the new table beside the old one, rows of the old one that it lacks are added to it."""
    if not columns(link, old):
        return
    if not columns(link, new):
        link.exec_driver_sql(f"ALTER TABLE {quote(link, old)} RENAME TO {quote(link, new)}")
        return
    both = columns(link, old) & columns(link, new)
    order = "ORDER BY number" if "number" in both else ""
    shared = ", ".join(quote(link, each) for each in sorted(both - {"number"}))  # they get new numbers, in their order
    link.exec_driver_sql(f"INSERT INTO {new} ({shared}) SELECT {shared} FROM {old} WHERE true {order} ON CONFLICT DO NOTHING")
    link.exec_driver_sql(f"DROP TABLE {old}")


def rebuild(link: sa.Connection, made: sa.Table, values: Mapping[str, str]) -> None:
    """Replace a table by `made`, of the same name, with its rows. `values`: column -> its value, in SQL, where it is new."""
    old = f"{made.name}_old"
    for index in sa.inspect(link).get_indexes(made.name):
        if not index.get("duplicates_constraint"):
            link.exec_driver_sql(f"DROP INDEX {quote(link, str(index['name']))}")
    link.exec_driver_sql(f"ALTER TABLE {made.name} RENAME TO {old}")
    there = columns(link, old)
    taken = {each.name: values.get(each.name, quote(link, each.name)) for each in made.columns}
    taken = {name: value for name, value in taken.items() if name in there or name in values}
    made.create(link)
    into = ", ".join(quote(link, name) for name in taken)
    link.execute(sa.text(f"INSERT INTO {made.name} ({into}) SELECT {', '.join(taken.values())} FROM {old}"))
    link.exec_driver_sql(f"DROP TABLE {old}")
