"""Hands predictions to the spool, from which they reach the ledger asynchronously."""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from evergreen.serving.background_work import BackgroundWork
from evergreen.serving.loaded_model import LoadedModel
from evergreen.serving.serving_versions import ServiceUnavailableError
from evergreen.tasks.core.errors import EvergreenError

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.spool import Spool
    from evergreen.serving.serving_set import Variant
    from evergreen.tasks.problems.recommender.list_request import Request

log = logging.getLogger(__name__)

ID_CHARACTERS = 32
"""128 random bits."""
IDS_PER_READ = 128


class PredictionWriter:
    """Gives predictions their ids and writes them to `spool` (None: writes nothing).

    `durable`: a response waits until its predictions are on disk.
    """

    def __init__(self, spool: "Spool | None", durable: bool, background: BackgroundWork) -> None:
        self.spool, self.durable = spool, durable and spool is not None
        self._background = background
        self._waiting: list[asyncio.Future[None]] = []
        self._flushing = False
        self._ids = list[str]()
        """Ids for the next predictions: reading random bytes is a system call."""

    def new_id(self) -> str:
        """An id that no other prediction has and nobody can guess: a caller with another key may not label it."""
        if not self._ids:
            text = secrets.token_hex(IDS_PER_READ * ID_CHARACTERS // 2)
            self._ids = [text[first : first + ID_CHARACTERS] for first in range(0, len(text), ID_CHARACTERS)]
        return self._ids.pop()

    def write(
        self,
        id_: str,
        model: LoadedModel,
        variant: "Variant",
        entity: str | None,
        features: Any,
        output: Mapping[str, Any],
        cutoff: date | None = None,
    ) -> None:
        if self.spool:
            self.spool.put(id_, model.problem, model.version, variant, datetime.now(UTC), entity, features, output, cutoff)

    def write_list(
        self,
        id_: str,
        model: LoadedModel,
        variant: "Variant",
        entity: str | None,
        request: "Request",
        found: Mapping[str, Any],
        cutoff: date | None,
    ) -> None:
        """A list: the request takes the place of the features; items in their order, scores and sources are the output.

        `cutoff`: of a list as on that day; None: purchases after this moment are its label.
        """
        features = request.model_dump(mode="json", exclude={"users", "explain"}, exclude_defaults=True)
        output = {f"{name}s": [each[name] for each in found["items"]] for name in ("item", "score", "source")}
        output |= {name: found[name] for name in ("propensities", "as_of") if name in found}
        self.write(id_, model, variant, entity, features, output, cutoff)

    async def until_durable(self) -> None:
        """If `durable`, return once all that was written is on disk. Concurrent requests share one flush.

        Raises ServiceUnavailableError if the disk refuses.
        """
        if not self.durable:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._flushing:
            self._flushing = True
            self._background.start(self._flush_for_waiting())
        await future

    async def _flush_for_waiting(self) -> None:
        assert self.spool
        try:
            while self._waiting:
                part, self._waiting = self._waiting, []
                failure: Exception | None = None
                try:
                    await self._background.run(self._background.disk, self.spool.flush)
                except EvergreenError as error:
                    log.error("%s", error)
                    failure = ServiceUnavailableError("cannot write the prediction to disk, which serve.durable requires")
                for each in part:
                    if not each.done():
                        each.set_exception(failure) if failure else each.set_result(None)
        finally:
            self._flushing = False

    async def flush(self) -> None:
        """Write what waits in memory, unless `durable` requests do so themselves."""
        if self.spool and not self.durable:
            await self._background.run(self._background.disk, self.spool.flush)

    async def close(self) -> None:
        """Write queued predictions; then accept no more."""
        if self.spool:
            await self._background.run(self._background.disk, self.spool.close)
