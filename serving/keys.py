"""API keys: who may ask what of a server. A secret is shown once, when it is made; what is kept cannot be turned back into it.

A secret is `eg_ID_RANDOM`. ID, which is no secret, finds the row; RANDOM is 256 bits from the system's source. The row holds a
keyed hash of it (BLAKE2b, with a random key for each row). A slow hash, as passwords need, would protect nothing more: slowness
pays where guesses are few, and here there are 2^256 of them; but it would let anybody keep the server busy with false keys.
"""

import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ParamsError

Scope = Literal["predict", "events", "labels", "admin"]
"""What a key is for: answers, purchases, late truths; admin: all of it, and what only operators need."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

TABLE = sa.Table(
    "api_keys",
    sa.MetaData(),
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("salt", sa.LargeBinary(32), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("revoked", sa.DateTime(timezone=True)),
)
IS_GOOD = TABLE.c.revoked.is_(None)
sa.Index("one_good_key_of_a_name", TABLE.c.name, unique=True, sqlite_where=IS_GOOD, postgresql_where=IS_GOOD)
NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
HEAD = "eg_"
"""What secrets begin with, so that those who look for leaked ones can tell."""
BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret."""

    id: str
    """Part of the secret, and none itself."""
    name: str
    scopes: frozenset[Scope]
    created: datetime
    """UTC."""
    revoked: datetime | None
    """UTC; None while it is good."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What opens for one secret alone."""

    key: Key
    salt: bytes
    digest: bytes

    def opens(self, secret: str) -> bool:
        """In a time that does not depend on how much of the secret is right."""
        return compare_digest(_digest(secret, self.salt), self.digest)


class Keys:
    """The keys, in a table at the SQLAlchemy `address`. Raises ProjectError where the database cannot be used."""

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "keys", TABLE.metadata)

    def add(self, name: str, scopes: Iterable[str]) -> str:
        """A new key; its secret, which cannot be had again. Raises ParamsError for a name or scope that will not do."""
        if not re.fullmatch(NAME, name):
            raise ParamsError(f"{name!r}: is no name for a key; use a letter, then letters, digits, _ and -; 64 at most")
        wanted = sorted({_scope(each) for each in scopes}, key=SCOPES.index)
        if not wanted:
            raise ParamsError(f"{name}: a key needs a scope; name at least one of {', '.join(SCOPES)}")
        id, salt = secrets.token_hex(6), secrets.token_bytes(BYTES)
        secret = f"{HEAD}{id}_{secrets.token_urlsafe(BYTES)}"
        row = {"id": id, "name": name, "scopes": json.dumps(wanted), "salt": salt, "digest": _digest(secret, salt)}
        try:
            with database.transaction(self._engine, "keys", through=(IntegrityError,)) as link:
                link.execute(sa.insert(TABLE).values(**row, created=datetime.now(UTC)))
        except IntegrityError:
            again = f"take another name, or evergreen keys revoke {name} first"
            raise ParamsError(f"{name}: is the name of a good key already; {again}") from None
        return secret

    def list(self) -> list[Key]:
        """All there ever were, oldest first."""
        return [each.key for each in self._read(sa.true())]

    def revoke(self, name: str) -> Key:
        """End the key of that name for good; servers refuse it within two seconds. Raises ParamsError where there is none."""
        now = datetime.now(UTC)
        with database.transaction(self._engine, "keys") as link:
            row = link.execute(sa.select(TABLE).where(TABLE.c.name == name, IS_GOOD)).first()
            if row is not None:
                link.execute(sa.update(TABLE).where(TABLE.c.id == row.id).values(revoked=now))
        if row is None:
            known = ", ".join(each.name for each in self.list() if each.revoked is None)
            raise ParamsError(f"{name}: no good key has that name; there are {known or 'none'}")
        return dataclasses.replace(_key(row), revoked=now)

    def locks(self) -> Mapping[str, Lock]:
        """Those of the good keys, by id."""
        return {each.key.id: each for each in self._read(IS_GOOD)}

    def _read(self, wanted: sa.ColumnElement[bool]) -> "list[Lock]":
        with database.transaction(self._engine, "keys") as link:
            rows = link.execute(sa.select(TABLE).where(wanted).order_by(TABLE.c.created, TABLE.c.id)).all()
        return [Lock(_key(row), row.salt, row.digest) for row in rows]


def id_of(secret: str) -> str:
    """The part that finds the key; "" for a text that is no secret."""
    head, _, rest = secret.partition("_")
    return rest.partition("_")[0] if head == HEAD[:-1] else ""


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode("utf-8", "replace"), key=salt, digest_size=BYTES, person=b"evergreen key").digest()


def _scope(text: str) -> Scope:
    for scope in SCOPES:
        if scope == text:
            return scope
    raise ParamsError(f"--scope {text}: is none; take one of {', '.join(SCOPES)}")


def _key(row: Any) -> Key:
    revoked = _utc(row.revoked) if row.revoked else None
    return Key(row.id, row.name, frozenset(json.loads(row.scopes)), _utc(row.created), revoked)


def _utc(moment: datetime) -> datetime:
    """`moment` in UTC; SQLite gives times back without a zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
