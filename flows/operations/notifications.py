"""Telling people, by a webhook and a block of Prefect's (e-mail, say) that the environment names. Never fails its caller."""

import asyncio
import inspect
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 10


def send(layout: Layout, subject: str, body: str, facts: Mapping[str, Any] | None = None) -> list[str]:
    """Tell `body` to whom the settings name. Returns how it was told; what could not be is a line in the log."""
    found, told = settings.read(layout), []
    if found.webhook:
        told += _post(found.webhook, {"text": f"{subject}: {body}", "subject": subject, "body": body, **dict(facts or {})})
    if found.notify_block:
        told += _block(found.notify_block, subject, body)
    return told


def _post(address: str, message: Mapping[str, Any]) -> list[str]:
    """The message as JSON; its key `text` is what chat services show. The address may hold a secret, so no line names it."""
    try:
        text = json.dumps(message, default=str).encode()
        request = Request(address, text, {"Content-Type": "application/json"}, method="POST")  # the operator's own
        with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE_SECONDS):
            return ["webhook"]
    except (URLError, OSError, ValueError) as error:
        log.warning("the webhook did not take the message: %s", getattr(error, "reason", None) or type(error).__name__)
        return []


def _block(name: str, subject: str, body: str) -> list[str]:
    """By Prefect's block `type/name`, such as sendgrid-email/operations."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise ValueError(f"{name} is no block that notifies")
        notified: Any = block.notify(body, subject)
        if inspect.isawaitable(notified):
            asyncio.run(_awaited(notified))
    except Exception as error:  # noqa: BLE001  # a block may fail in any way, and the look stands
        log.warning("the block %s did not take the message: %s", name, str(error).splitlines()[0] if str(error) else error)
        return []
    return [name]


async def _awaited(message: Any) -> None:
    await message
