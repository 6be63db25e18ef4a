"""Answers to suggested retrainings that come at the same instant."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from evergreen.monitoring.ledger.suggestions import Action, Answer, Suggestions

AT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def answer(action: Action, by: str) -> Answer:
    return Answer(problem="dear", decided=AT, action=action, until=None, by=by, at=AT, reason="x")


def test_of_answers_at_the_same_instant_the_first_is_written_and_the_others_hear_of_it(address: str):
    stores = [Suggestions(address) for _ in range(6)]
    together = threading.Barrier(6)

    def send(place: int) -> bool:
        together.wait()
        return stores[place].add(answer("decline" if place % 2 else "approve", f"visitor {place}"), lambda known: not known)

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(send, range(6)))
    assert sum(written) == 1
    assert [each.by for each in stores[0].answers("dear")] == [f"visitor {written.index(True)}"]
