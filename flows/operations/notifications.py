"""Notifications by webhook and by a Prefect block (e-mail, say) that the environment names. They never fail their caller."""

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

TIMEOUT_SECONDS = 10


def send(layout: Layout, subject: str, body: str, facts: Mapping[str, Any] | None = None) -> list[str]:
    """Send `body` to the webhook and block of the settings. Returns the channels that accepted it; failures are logged."""
    found, accepted = settings.read(layout), []
    if found.webhook:
        accepted += _post(found.webhook, {"text": f"{subject}: {body}", "subject": subject, "body": body, **dict(facts or {})})
    if found.notify_block:
        accepted += _notify_block(found.notify_block, subject, body)
    return accepted


def _post(address: str, message: Mapping[str, Any]) -> list[str]:
    """The message as JSON; chat services show its key `text`. The address may hold a secret, so no log line contains it."""
    try:
        text = json.dumps(message, default=str).encode()
        request = Request(address, text, {"Content-Type": "application/json"}, method="POST")  # the operator's own
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_SECONDS):
            return ["webhook"]
    except (URLError, OSError, ValueError) as error:
        log.warning("the webhook did not accept the message: %s", getattr(error, "reason", None) or type(error).__name__)
        return []


def _notify_block(name: str, subject: str, body: str) -> list[str]:
    """By Prefect's block `type/name`, such as sendgrid-email/operations."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise ValueError(f"{name} is not a notification block")
        result: Any = block.notify(body, subject)
        if inspect.isawaitable(result):
            asyncio.run(_wait(result))
    except Exception as error:  # noqa: BLE001  # a block may fail in any way; the caller goes on
        log.warning("the block %s did not accept the message: %s", name, str(error).splitlines()[0] if str(error) else error)
        return []
    return [name]


async def _wait(message: Any) -> None:
    await message
