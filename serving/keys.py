"""API keys: who may do what with a server, for which problems.

A secret is shown once, when it is created; only a hash is stored.

A secret is `eg_ID_RANDOM`. ID, which is not secret, finds the row; RANDOM is 256 bits from the system's random source. The
row holds a keyed hash (BLAKE2b, with a random key per row). A slow password hash would add nothing: slowness helps if there
are few guesses to try, and here there are 2^256. It would also let anyone keep the server busy with false keys.
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

Scope = Literal["predict", "events", "labels", "read", "admin"]
"""What a key allows: predictions, purchase events, labels; read: the console without its actions; admin: everything."""
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
    sa.Column("problems", sa.Text),  # NULL: all
)
IS_ACTIVE = TABLE.c.revoked.is_(None)
sa.Index("one_active_key_per_name", TABLE.c.name, unique=True, sqlite_where=IS_ACTIVE, postgresql_where=IS_ACTIVE)
NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
PREFIX = "eg_"
"""Start of every secret, so that scanners can find leaked ones."""
BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret."""

    id: str
    """The part of the secret that is not secret."""
    name: str
    scopes: frozenset[Scope]
    created: datetime
    """UTC."""
    revoked: datetime | None
    """UTC; None while the key is active."""
    problems: frozenset[str] = frozenset()
    """Those that it is bound to; empty: all problems, later ones too."""

    def allows(self, problem: str) -> bool:
        return not self.problems or problem in self.problems


@dataclass(frozen=True, slots=True)
class HashedKey:
    """The stored hash of one key."""

    key: Key
    salt: bytes
    digest: bytes

    def matches(self, secret: str) -> bool:
        """Compares in constant time."""
        return compare_digest(_digest(secret, self.salt), self.digest)


class Keys:
    """The keys, in a table at the SQLAlchemy `address`. Raises ProjectError if the database cannot be used."""

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "keys", TABLE.metadata)

    def add(self, name: str, scopes: Iterable[str], problems: Iterable[str] = ()) -> str:
        """Create a key, bound to `problems` if there are any. Returns its secret, which cannot be read again.

        Raises ParamsError for an invalid name or scope, and for the scope admin of a bound key.
        """
        if not re.fullmatch(NAME, name):
            raise ParamsError(f"{name!r}: is not a valid key name; use a letter, then letters, digits, _ and -; 64 at most")
        wanted = sorted({_scope(each) for each in scopes}, key=SCOPES.index)
        if not wanted:
            raise ParamsError(f"{name}: a key needs a scope; name at least one of {', '.join(SCOPES)}")
        bound = sorted(set(problems))
        if bound and "admin" in wanted:
            rule = "admin covers all problems, so a key that is bound to some cannot have it"
            raise ParamsError(f"{name}: {rule}; leave out --problem, or take another --scope")
        id, salt = secrets.token_hex(6), secrets.token_bytes(BYTES)
        secret = f"{PREFIX}{id}_{secrets.token_urlsafe(BYTES)}"
        row = {
            "id": id,
            "name": name,
            "scopes": json.dumps(wanted),
            "problems": json.dumps(bound) if bound else None,
            "salt": salt,
            "digest": _digest(secret, salt),
        }
        try:
            with database.transaction(self._engine, "keys", through=(IntegrityError,)) as connection:
                connection.execute(sa.insert(TABLE).values(**row, created=datetime.now(UTC)))
        except IntegrityError:
            advice = f"take another name, or run evergreen keys revoke {name} first"
            raise ParamsError(f"{name}: an active key has this name; {advice}") from None
        return secret

    def list(self) -> list[Key]:
        """All keys, revoked ones included, oldest first."""
        return [each.key for each in self._read(sa.true())]

    def revoke(self, name: str) -> Key:
        """Revoke the active key of that name; servers reject it within two seconds. Raises ParamsError if there is none."""
        now = datetime.now(UTC)
        with database.transaction(self._engine, "keys") as connection:
            row = connection.execute(sa.select(TABLE).where(TABLE.c.name == name, IS_ACTIVE)).first()
            if row is not None:
                connection.execute(sa.update(TABLE).where(TABLE.c.id == row.id).values(revoked=now))
        if row is None:
            active = ", ".join(each.name for each in self.list() if each.revoked is None)
            raise ParamsError(f"{name}: no active key has this name; active keys: {active or 'none'}")
        return dataclasses.replace(_key(row), revoked=now)

    def active_keys(self) -> Mapping[str, HashedKey]:
        """The keys that are not revoked, by id."""
        return {each.key.id: each for each in self._read(IS_ACTIVE)}

    def _read(self, condition: sa.ColumnElement[bool]) -> "list[HashedKey]":
        with database.transaction(self._engine, "keys") as connection:
            rows = connection.execute(sa.select(TABLE).where(condition).order_by(TABLE.c.created, TABLE.c.id)).all()
        return [HashedKey(_key(row), row.salt, row.digest) for row in rows]


def key_id(secret: str) -> str:
    """The id within a secret; "" for a text that is not a secret."""
    prefix, _, rest = secret.partition("_")
    return rest.partition("_")[0] if prefix == PREFIX[:-1] else ""


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode("utf-8", "replace"), key=salt, digest_size=BYTES, person=b"evergreen key").digest()


def _scope(text: str) -> Scope:
    for scope in SCOPES:
        if scope == text:
            return scope
    raise ParamsError(f"--scope {text}: unknown scope; take one of {', '.join(SCOPES)}")


def _key(row: Any) -> Key:
    revoked = _utc(row.revoked) if row.revoked else None
    problems = frozenset(json.loads(row.problems or "[]"))
    return Key(row.id, row.name, frozenset(json.loads(row.scopes)), _utc(row.created), revoked, problems)


def _utc(moment: datetime) -> datetime:
    """`moment` in UTC; SQLite returns times without a zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
