"""Garbage collection of a process with many libraries: it takes a fifth of their imports and a third of a second at the end."""

import atexit
import gc

SELDOM = (50_000, 20, 20)
USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """Collect seldom, and not at the end of the process."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)


def keep_loaded() -> None:
    """Take what is loaded now as permanent, and collect as Python does: for a process that runs for long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*USUAL)
