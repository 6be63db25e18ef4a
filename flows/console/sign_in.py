"""Who visits the console, and what they may do.

A console that only this machine can reach needs no key: its visitor is the user of the process. Any other asks for an API key
with the scope admin (everything) or read (no actions); a key that is bound to problems shows those alone. The session is a
signed cookie; a revoked key ends it at the next request.
"""

import secrets
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any

from evergreen.serving.access_control import AccessControl, Denial, Headers
from evergreen.serving.keys import HashedKey, Key, Keys, key_id
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.paths import make_folder

SECRET_BYTES = 32
SESSION_SECONDS = 12 * 3600
"""A session ends after so many seconds, whatever happens."""


@dataclass(frozen=True)
class Visitor:
    name: str
    """Stands in the history beside what they do."""
    may_act: bool
    problems: frozenset[str] = frozenset()
    """Those that they see; empty: all."""
    with_key: bool = False

    def sees(self, problem: str) -> bool:
        return not self.problems or problem in self.problems

    def visible(self, problems: Iterable[str]) -> list[str]:
        return [each for each in problems if self.sees(each)]


class SignIn:
    """Raises ProjectError if other machines can reach `host` and there is no key."""

    def __init__(self, policy: Serve, host: str, keys: Keys, user: str) -> None:
        self._access = AccessControl(policy, host, keys)
        self._keys, self._user = keys, user
        self.required = self._access.requires_key

    def check(self, headers: Headers, client: str, path: str) -> Denial | None:
        """The denial of a request whose host or origin is not allowed on a console without keys."""
        return None if self.required else self._access.check(None, headers, client, path)

    def visitor(self, session: Mapping[str, Any]) -> Visitor | None:
        """None: they have to sign in."""
        if not self.required:
            return Visitor(self._user, may_act=True)
        found = self._keys.active_keys().get(session.get("key", ""))
        return _visitor(found.key) if found else None

    def sign_in(self, session: MutableMapping[str, Any], secret: str) -> str | None:
        """Begin a session, or return why not."""
        found: HashedKey | None = self._keys.active_keys().get(key_id(secret))
        if found is None or not found.matches(secret):
            return "This key is unknown or revoked."
        if not found.key.scopes & {"admin", "read"}:
            return f"The key {found.key.name} has neither the scope admin nor the scope read."
        session.clear()
        session["key"] = found.key.id
        return None


def _visitor(key: Key) -> Visitor | None:
    if not key.scopes & {"admin", "read"}:
        return None
    return Visitor(key.name, "admin" in key.scopes, key.problems, with_key=True)


def form_token(session: MutableMapping[str, Any]) -> str:
    """The token that each form of a session carries: a page of another site cannot know it."""
    return session.setdefault("token", secrets.token_urlsafe(24))


def has_token(session: Mapping[str, Any], given: str) -> bool:
    known = session.get("token")
    return bool(known) and compare_digest(str(known).encode(), given.encode())


def session_secret(folder: Path) -> str:
    """The secret that signs the cookies, made once per project and closed to other users."""
    path = folder / "console.secret"
    if not path.exists():
        make_folder(folder)
        made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        made.touch(0o600)
        made.write_text(secrets.token_hex(SECRET_BYTES))
        try:
            path.hardlink_to(made)  # of two consoles that begin at once, one makes it
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_text()
