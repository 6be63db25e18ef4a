"""Results that are made once for a key."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from evergreen.flows.console.kept import Kept


def test_of_many_callers_one_makes_the_result_and_all_get_it():
    kept, made = Kept[int](seconds=60, most=5), list[int]()
    begun = threading.Barrier(8)

    def make() -> int:
        made.append(1)
        time.sleep(0.05)
        return len(made)

    def call(_: int) -> int:
        begun.wait()
        return kept.get("key", make).value

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, range(8))) == {1}
    assert made == [1]
    assert kept.get("key", make, anew=True).value == 2


def test_a_result_is_made_again_when_it_is_old_and_the_first_goes_when_there_are_many():
    kept = Kept[int](seconds=0.0, most=2)
    assert [kept.get("a", lambda: 1).value, kept.get("a", lambda: 2).value] == [1, 2]
    kept = Kept[int](seconds=60, most=2)
    for name in ("a", "b", "c"):
        kept.get(name, lambda: 1)
    assert [bool(kept.peek(name)) for name in ("a", "b", "c")] == [False, True, True]
    assert len(kept._making) == 2


def test_an_error_is_raised_to_its_caller_and_not_kept():
    kept = Kept[int](seconds=60, most=2)
    with pytest.raises(ZeroDivisionError, match="division"):
        kept.get("a", lambda: 1 // 0)
    assert kept.get("a", lambda: 3).value == 3
