"""Who is champion, since when, by whom and why. The one home of rollout state."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tasks.params import Section

if TYPE_CHECKING:
    from tasks.gate import Verdict
    from tasks.registry import Registry


class Deployment(Section):
    """One decision about what answers for a problem."""

    problem: str
    version: int
    action: Literal["deploy", "refuse", "rollback"]
    by: str
    at: datetime
    reason: str
    evidence: dict[str, Any]
    previous: int | None


class Deployments:
    """The decisions, in a table at the SQLAlchemy `address`."""

    def __init__(self, address: str) -> None:
        raise NotImplementedError

    def deploy(self, registry: "Registry", problem: str, version: int, verdict: "Verdict", by: str) -> Deployment:
        raise NotImplementedError

    def rollback(self, registry: "Registry", problem: str, to: int | None, by: str, reason: str) -> Deployment:
        raise NotImplementedError

    def settle(self, registry: "Registry", problem: str) -> None:
        raise NotImplementedError

    def history(self, problem: str, at: datetime | None = None) -> list[Deployment]:
        raise NotImplementedError

    def champion(self, problem: str, at: datetime | None = None) -> int | None:
        raise NotImplementedError
