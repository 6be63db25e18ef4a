"""The public path of every type that model files name: `evergreen.model_types.Segmenter`.

A skops file names a type by its module. `stored_type` makes that module this one, and HOMES says where the class is defined
now. When you move a class, change its line in HOMES: files written before still load. When you rename one, they do not.
Importing this module imports no library.
"""

from importlib import import_module
from typing import Any, TypeVar

CLUSTERING = "evergreen.tasks.problems.clustering.kind"
REGRESSION = "evergreen.tasks.problems.regression.kind"
PREPROCESSING = "evergreen.tasks.problems.tabular.preprocessing"
PAIRS = "evergreen.tasks.problems.tabular.column_pairs"
DATES_TEXTS = "evergreen.tasks.problems.tabular.date_text_encoders"
CALIBRATION = "evergreen.tasks.problems.tabular.calibration"
ENSEMBLE = "evergreen.tasks.problems.tabular.weighted_ensemble"
NETWORKS = "evergreen.tasks.problems.tabular.neural_network"
RECOMMENDERS = "evergreen.tasks.problems.recommender.estimators"
LINEAR_RUNGS = "evergreen.tasks.problems.recommender.linear_rungs"
CANDIDATES = "evergreen.tasks.problems.recommender.candidate_generation"
SOURCES = "evergreen.tasks.problems.recommender.candidate_sources"
CONTENTS = "evergreen.tasks.problems.recommender.item_contents"
HISTORIES = "evergreen.tasks.problems.recommender.user_histories"

HOMES = {
    "QuantileGroups": CLUSTERING,
    "Segmenter": CLUSTERING,
    "NeuralNetworkClassifier": NETWORKS,
    "NeuralNetworkRegressor": NETWORKS,
    "LogRegressor": REGRESSION,
    "OffsetRegressor": REGRESSION,
    "Curves": PREPROCESSING,
    "FrequencyEncoder": PREPROCESSING,
    "Numbers": PREPROCESSING,
    "Rare": PREPROCESSING,
    "SignedLog": PREPROCESSING,
    "Text": PREPROCESSING,
    "f_of_classes": PREPROCESSING,
    "f_of_numbers": PREPROCESSING,
    "l1_weights": PREPROCESSING,
    "ColumnPairs": PAIRS,
    "Dates": DATES_TEXTS,
    "Words": DATES_TEXTS,
    "Calibrated": CALIBRATION,
    "BlendClassifier": ENSEMBLE,
    "BlendRegressor": ENSEMBLE,
    "FrequencyRecommender": RECOMMENDERS,
    "Recommender": RECOMMENDERS,
    "FirstStage": RECOMMENDERS,
    "RecentPopularity": RECOMMENDERS,
    "TwoStage": RECOMMENDERS,
    "EaseRecommender": LINEAR_RUNGS,
    "ItemKnnRecommender": LINEAR_RUNGS,
    "OneSource": LINEAR_RUNGS,
    "TifuKnnRecommender": LINEAR_RUNGS,
    "Learned": CANDIDATES,
    "Contents": CONTENTS,
    "Ease": SOURCES,
    "Factors": SOURCES,
    "ItemNeighbours": SOURCES,
    "Segments": SOURCES,
    "TifuKnn": SOURCES,
    "Histories": HISTORIES,
}
"""Name of a class or function -> module that defines it."""

Thing = TypeVar("Thing")


def stored_type(thing: Thing) -> Thing:
    """Decorate a class or function that model files name. Put it above `dataclass`.

    Raises TypeError for one that HOMES lists under another module, or not at all.
    """
    name, home = getattr(thing, "__name__", ""), getattr(thing, "__module__", "")
    if HOMES.get(name) != home:
        raise TypeError(f"{home}.{name}: HOMES of {__name__} has {HOMES.get(name, 'no such name')}; write {home} there")
    thing.__module__ = __name__
    return thing


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(HOMES[name]), name)
