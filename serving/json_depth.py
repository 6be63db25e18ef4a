"""Nesting depth of a JSON text, checked before it is parsed: deep nesting could exhaust the parser's stack."""

import re

MAX_DEPTH = 32
"""Deepest nesting of objects and lists; no protocol here needs more than five."""
STRINGS = re.compile(rb'"[^"]*"?')
NOT_BRACKETS_OR_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")


def too_deep(body: bytes) -> bool:
    """Whether a JSON text is nested deeper than MAX_DEPTH. For invalid JSON either answer is possible.

    Takes microseconds for a row, and less than parsing for a thousand: drops brackets inside strings, then removes the
    innermost pairs of the others, level by level.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = STRINGS.sub(b"", body.translate(BRACES_TO_BRACKETS, NOT_BRACKETS_OR_QUOTES).replace(b'""', b""))
    for _ in range(MAX_DEPTH):
        if b"[" * (MAX_DEPTH + 1) in left:
            return True
        before = len(left)
        left = left.replace(b"[]", b"")
        if len(left) == before:
            return False
    return bool(left)
