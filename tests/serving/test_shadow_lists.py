"""The lists of a shadow, which nobody sees."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from evergreen.serving.list_predictor import ListPredictor
from evergreen.serving.loaded_model import ListModel
from evergreen.tasks.problems.recommender.list_request import Request


def test_a_shadow_explores_nothing():
    """Its draws would be those of the champion for the user and day, so that they meet for sure and not by their propensity."""
    asked: list[Request] = []

    class Turns(ListPredictor):
        async def _in_turns(self, model: ListModel, request: Request) -> list[dict[str, Any]]:
            asked.append(request)
            return []

    predictor, candidate = object.__new__(Turns), object.__new__(ListModel)
    serving = cast(Any, SimpleNamespace(candidate=candidate, record=lambda *_: None))
    asyncio.run(predictor._shadow(serving, Request(users=("u",), explore=0.3, k=7), [], []))
    assert asked == [Request(users=("u",), explore=0.0, k=7)]
