"""The fresh features of the problems that have them. All versions of a problem in a process share one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.serving.fresh_features import FreshFeatures
    from evergreen.serving.row_log import RowLog


class FreshProblems:
    """`open_log`: opens the log of received rows, where a problem needs it."""

    def __init__(self, params: Params, layout: Layout, open_log: "Callable[[], RowLog]") -> None:
        self._params, self._layout, self._open_log = params, layout, open_log
        self._features: dict[str, FreshFeatures] = {}

    def of(self, problem: str) -> "FreshFeatures | None":
        """None: its answers come from the features step. Raises what FreshFeatures raises."""
        section = self._params.section(problem)
        if section.predicts != "rows" or section.answers.features != "fresh":
            return None
        if problem not in self._features:
            from evergreen.serving.fresh_features import FreshFeatures  # polars, which a server without them does not need

            self._features[problem] = FreshFeatures(self._params, problem, self._layout, self._open_log())
        return self._features[problem]
