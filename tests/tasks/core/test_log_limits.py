"""A fault that repeats fills no log."""

import io
import logging

import pytest

from evergreen.tasks.core import log_limits


def test_one_place_logs_so_many_lines_a_minute_and_says_how_many_were_left_out(monkeypatch: pytest.MonkeyPatch):
    now, written = [100.0], io.StringIO()
    monkeypatch.setattr(log_limits.time, "monotonic", lambda: now[0])
    log = logging.Logger("flood")
    log.addHandler(log_limits.LimitedHandler(written))
    for number in range(5000):
        log.warning("flood %d", number)
    log.warning("another place")
    lines = written.getvalue().splitlines()
    assert len(lines) == log_limits.PER_MINUTE + 1
    assert lines[-1] == "another place"
    now[0] += 61
    log.warning("the next minute")
    assert written.getvalue().splitlines()[-2:] == [
        "4980 more lines like those of test_log_limits.py:17 were left out in 61 s",
        "the next minute",
    ]
    assert len(log.handlers[0]._places) == 1  # pyright: ignore
