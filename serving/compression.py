"""Bodies compressed by gzip or deflate: requests within the limit on bodies, and responses to those who ask for them."""

import zlib
from collections.abc import Mapping
from types import MappingProxyType

from evergreen.serving.protocols import BodyTooLargeError, MalformedRequestError, UnsupportedTypeError

WINDOWS: Mapping[bytes, tuple[int, ...]] = MappingProxyType({b"gzip": (31,), b"deflate": (15, -15)})
"""Content-Encoding -> zlib's window sizes to try: deflate is zlib's format, and some clients send it without its header."""
MIN_BYTES = 1024
"""A shorter response stays as it is."""
LEVEL = 1


def decompress(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """The body as it was before `encoding`. Never makes more than `max_bytes`, whatever the body says.

    Raises UnsupportedTypeError for another encoding, BodyTooLargeError, and MalformedRequestError.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in WINDOWS:
        raise UnsupportedTypeError(f"content-encoding {name.decode('latin-1')[:40]}: must be gzip, deflate or identity")
    for window in WINDOWS[name]:
        reader = zlib.decompressobj(window)
        try:
            found = reader.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(found) > max_bytes:
            raise BodyTooLargeError
        if reader.eof and not reader.unused_data:
            return found
    raise MalformedRequestError(f"content-encoding {name.decode()}: the body is not one complete {name.decode()} stream")


def compress(body: bytes, accepted: bytes | None) -> tuple[bytes, bytes | None]:
    """The body of a response and its encoding, if the client's header Accept-Encoding names one and the body is long."""
    if accepted is None or len(body) < MIN_BYTES:
        return body, None
    parts = [part.partition(b";") for part in accepted.lower().split(b",")]
    named = {name.strip(): quality.replace(b" ", b"") for name, _, quality in parts}
    for name, windows in WINDOWS.items():
        if name in named and named[name] not in (b"q=0", b"q=0.0"):
            writer = zlib.compressobj(LEVEL, wbits=windows[0])
            return writer.compress(body) + writer.flush(), name
    return body, None
