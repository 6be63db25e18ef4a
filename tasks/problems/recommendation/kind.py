"""Recommendation: which items each user buys next. One model gives two lists: everything, and only what is new to the user.

Protocol: histories up to the cutoff, the targets are what is bought in the days after it, ranked against the whole catalogue
without sampling. Repeat purchases count in the metrics without suffix; those with `_novel` look at lists and purchases of items
that the user never bought before. An item too rare for the catalogue stays in the targets. Judged are the users who bought
something in the window (for `_novel`: something new to them), also those without any history.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.config.params import Range, Recommend
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.suggestions import require
from evergreen.tasks.problems import splits as split
from evergreen.tasks.problems.base import Config, FeatureFolders, Fold, Part, Splits, write_frames
from evergreen.tasks.problems.recommendation.predictions import LISTS, RankedLists
from evergreen.tasks.problems.recommender import dask_partitions, evaluation_tables, interactions
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES
from evergreen.tasks.problems.recommender.decay_choice import (
    choose_co_visitation_days,
    choose_decay,
    choose_popularity_days,
    choose_second_decay,
    choose_segment_days,
)
from evergreen.tasks.problems.recommender.estimators import FirstStage, FrequencyRecommender, Ranked, Recommender, TwoStage
from evergreen.tasks.problems.recommender.hidden_items import judge_hidden
from evergreen.tasks.problems.recommender.interactions import InteractionData
from evergreen.tasks.problems.recommender.list_builder import ListBuilder
from evergreen.tasks.problems.recommender.list_request import Request
from evergreen.tasks.problems.recommender.model_ladder import MODELS
from evergreen.tasks.problems.recommender.ranker_features import USER
from evergreen.tasks.problems.recommender.ranking_metrics import Items, of_lists, per_user
from evergreen.tasks.problems.recommender.source_ablation import ablate
from evergreen.tasks.problems.recommender.user_histories import codes, take, to_date

log = logging.getLogger(__name__)

CHOOSING_WINDOWS = 2
"""Windows by which half-lives and the window of popularity are chosen."""


class Recommendation(RankedLists):
    baseline = "popularity"

    def build(
        self, tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Recommend, as_of: date
    ) -> dict[str, pl.DataFrame]:
        """`lines`: one row per user, basket and item with its day; `items`: item and category; `known`: the day `as_of`."""
        return interactions.build(tables, times, section.features, as_of)

    def write(
        self,
        tables: Mapping[str, pl.LazyFrame],
        times: Mapping[str, str | None],
        section: Recommend,
        as_of: date,
        folders: FeatureFolders,
    ) -> None:
        write_frames(self.build(tables, times, section, as_of), folders.learned)

    def load(self, folder: Path, section: Recommend) -> InteractionData:
        content = section.pipeline.sources.content
        return interactions.load(folder, section.features, section.features.items is not None and True in content)

    def cutoffs(self, data: InteractionData) -> list[date]:
        """See evaluation_windows: by the calendar every `horizon_days` days, else days between which as many users end."""
        return data.windows.cutoffs()

    def splits(self, data: InteractionData, section: Recommend) -> Splits:
        return split.by_cutoff(self.cutoffs(data), data.windows.gap, section)

    def begins(self, data: InteractionData, part: Part) -> date | None:
        return part if isinstance(part, date) else None

    def space(self, section: Recommend) -> dict[str, dict[str, Range]]:
        """The ladder; a half-life and a window that are given are not chosen by `fit`."""
        given = section.pipeline
        decay = {} if given.half_life_days is None else {"half_life_days": Range(values=given.half_life_days)}
        stages = {f"with_{name}": Range(values=getattr(given.sources, name)) for name in type(given.sources).model_fields}
        ease = {"ease_penalty": Range(values=given.ease_penalty)}
        neighbours = {"user_neighbours": Range(values=given.user_neighbours)}
        ranker = {"leaves": Range(low=7, high=63, log=True, integer=True), "learning_rate": Range(low=0.02, high=0.2, log=True)}
        return {
            "popularity": {},
            **({"recent_popularity": {}} if given.popularity_days is None else {}),
            "frequency": decay,
            "item_knn": decay,
            "ease": {**decay, **ease},
            "tifu_knn": {**decay, **neighbours},
            "two_stage": {**decay, **stages, **ease, **neighbours, **ranker},
        }

    def defaults(self, model: str, section: Recommend) -> Config:
        first = {name: each.values[0] for name, each in self.space(section)[model].items() if each.values}
        return {"model": model, **first, **({"leaves": 31, "learning_rate": 0.08} if model == "two_stage" else {})}

    def fit(self, data: InteractionData, cutoffs: Sequence[date], config: Config, section: Recommend, seed: int) -> Recommender:
        """Learns from all lines up to the day on which the labels of `cutoffs` are complete: the newest plus the horizon.

        Raises DataError where no window gives the ranker a hit to learn from.
        """
        day = _known(data, cutoffs)
        model = _unfitted(config, section, seed)
        _choose(model, data, cutoffs, section)
        known = data.histories.until(day)
        if not isinstance(model, FirstStage):
            return model.learn(known, day)
        learned = data.learned(day, model.settings)
        if not isinstance(model, TwoStage):
            return model.take(learned).read(known, day)
        windows = sorted(cutoffs)[-section.pipeline.ranker_windows :]
        examples = [data.examples(each, model.settings, section.pipeline.ranker_users, seed) for each in windows]
        if not any(label.any() for _, label in examples):
            raise DataError(
                f"nobody bought a candidate in the {len(windows)} windows up to {to_date(day)}: the ranker cannot learn. "
                "Give more history, a longer horizon, or more pipeline.ranker_windows."
            )
        return model.learn_ranker(learned, examples).read(known, day)

    def predict(self, model: Recommender, data: InteractionData, cutoff: date, section: Recommend) -> pl.DataFrame:
        """One row per user who bought something in the window after `cutoff`.

        `entity`; `visits`: days with a purchase before; `items`, `items_novel`: the lists; `sources`, `sources_novel`: whom
        each entry is owed to; `bought`, `bought_novel`: number of items in the targets; `repeats`: share of the list that
        the user bought before, `bought_repeats`: that of the targets; each metric of the user, null where it is undefined.
        """
        if (found := data.stored_predictions(model, cutoff)) is not None:
            return found
        targets, reader = data.targets(cutoff), data.reader(model, cutoff)
        ids = data.histories.users[targets.users]
        positions = reader.histories_.find(ids)
        columns: dict[str, Any] = {"entity": ids, "visits": data.visits(targets.users, cutoff)}
        both = self._both(data.scorer(model, cutoff), reader, data, cutoff, positions, section.pipeline.k)
        for suffix, lists in zip(LISTS, both, strict=True):
            columns |= _judged(lists, reader, data, targets, section.pipeline.k, suffix, data.items(cutoff))
        return data.store_predictions(model, cutoff, pl.DataFrame(columns, nan_to_null=True))

    def _both(
        self, model: Recommender, reader: Recommender, data: InteractionData, cutoff: date, positions: np.ndarray, k: int
    ) -> list[Ranked]:
        """The lists of everything and those of new items; candidates are shared with whoever else asks for this cutoff."""
        if not isinstance(model, TwoStage) or len(positions) > interactions.MAX_SHARED_USERS:
            return dask_partitions.rank(reader, positions, k, list(LISTS.values()))
        scored = data.scored(model, cutoff)
        return [reader.rank(positions, k, novel, scored) for novel in LISTS.values()]

    def unit_values(self, predictions: pl.DataFrame, metric: str) -> pl.DataFrame:
        """unit (a user) and value; empty for a metric of the model as a whole, such as coverage."""
        value = pl.col(metric).cast(pl.Float64) if metric in predictions.columns else pl.lit(None, pl.Float64)
        return predictions.select(unit="entity", value=value).drop_nulls().drop_nans()

    def score_model(
        self, model: Recommender, data: InteractionData, fold: Fold, config: Config, section: Recommend, seed: int
    ) -> dict[str, float]:
        """Share of the catalogue that is in anybody's list at the test cutoff."""
        assert isinstance(fold.test, date)
        rows, size = self.predict(model, data, fold.test, section), max(len(model.catalogue_), 1)
        return {f"coverage{suffix}": evaluation_tables.entries(rows[f"items{suffix}"]).n_unique() / size for suffix in LISTS}

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Recommender, data: InteractionData, section: Recommend
    ) -> dict[str, pl.DataFrame]:
        """How good the lists are by length of history, what they are made of, and what each source is worth."""
        found, users = (
            evaluation_tables.plots(predictions, baseline, model, data, section.pipeline.k),
            section.evaluate.ablation_users,
        )
        cutoff = predictions["cutoff"].max()
        if isinstance(model, TwoStage) and isinstance(cutoff, date) and model.learned_.content is not None:
            table = judge_hidden(model, data, cutoff, section.pipeline.k)
            found |= {"hidden_items": table} if table.height else {}
        if isinstance(model, TwoStage) and isinstance(cutoff, date) and users:
            table = ablate(model, data, cutoff, section.pipeline.k, users)
            found |= {"ablations": table} if table.height else {}
        return found

    def rows(self, data: InteractionData, cutoffs: Sequence[date]) -> int:
        return len(data.histories.until(_known(data, cutoffs)).users)

    def importance(self, model: Recommender) -> dict[str, float]:
        return model.importance()

    def slices(self, data: InteractionData, cutoff: date, names: Sequence[str], section: Recommend) -> pl.DataFrame:
        """`_entity` and facts about the user: what the ranker knows at `cutoff`, such as visits, and features.attributes."""
        attribute_names = [name for name in data.attributes.columns if name != "user"]
        for name in names:
            require(name, [*USER, *attribute_names], "evaluate.slices")
        users = data.targets(cutoff).users
        facts, ids = data.users(users, cutoff), data.histories.users[users]
        attributes = data.attributes_of(ids)
        columns = {name: attributes[name] if name in attribute_names else facts[:, USER.index(name)] for name in names}
        return pl.DataFrame({"_entity": ids, **columns})

    def example(self, data: InteractionData, section: Recommend) -> pd.DataFrame:
        """The users of the newest lines."""
        newest = data.histories.user[-1000:][::-1]
        _, first = np.unique(newest, return_index=True)
        return pd.DataFrame({section.features.user: data.histories.users[newest[np.sort(first)[:5]]]})

    def predict_new(self, model: Recommender, data: InteractionData, rows: pl.DataFrame, section: Recommend) -> pl.DataFrame:
        """The list of each user of `rows`, from the newest histories: user, rank, item, score, source; best first.

        Made as section.lists says. A user asked for twice gets two lists; one without history gets what is popular. Logs
        how many lists are shorter than asked for, and why the first is.
        """
        user = section.features.user
        if user not in rows.columns:
            raise DataError(f"columns {', '.join(rows.columns) or '(none)'}: needs {user}, whom to recommend to")
        explain = section.lists.explain
        builder, users = ListBuilder.of(model, data, section), tuple(rows[user].to_list())
        if builder.learned > builder.day:
            log.warning(
                "the model learned from purchases up to %s: lists as of %s know of what came later. For lists that could have "
                "been made then, name a --version of that time, or train one: evergreen train --as-of %s",
                to_date(builder.learned), data.as_of, data.as_of,
            )  # fmt: skip
        found = builder.recommend(Request(users=users or (None,), explain=explain))
        for note in found.notes[:1]:
            log.warning("%s of %s lists are shorter than asked for; the first: %s", len(found.notes), rows.height, note)
        lists = found.frame(rows[user] if users else pl.Series(user, [None], rows[user].dtype), section.features.item, explain)
        return lists if users else lists.clear()


def _known(data: InteractionData, cutoffs: Sequence[date]) -> int:
    """The day on which the labels of `cutoffs` are complete."""
    return data.windows.end(max(cutoffs))


def _unfitted(config: Config, section: Recommend, seed: int) -> Recommender:
    given, columns, kind = section.pipeline, section.features, MODELS[config["model"]]
    fixed = {"user": columns.user, "item": columns.item, "min_users": columns.min_users, "seed": seed}
    fixed |= {name: value for name, value in given.model_dump().items() if isinstance(value, int)}
    names = kind._get_param_names()  # pyright: ignore[reportPrivateUsage]
    chosen = {name: value for name, value in config.items() if name != "model"}
    return kind(**{name: value for name, value in fixed.items() if name in names} | chosen)


def _choose(model: Recommender, data: InteractionData, cutoffs: Sequence[date], section: Recommend) -> None:
    """The half-lives and windows of days that `section` leaves open, by the newest of `cutoffs`."""
    newest, k = tuple(sorted(cutoffs)[-CHOOSING_WINDOWS:]), section.pipeline.k
    if isinstance(model, FrequencyRecommender) and section.pipeline.half_life_days is None:
        decay = data.once("decay", (newest, k), lambda: choose_decay(data.cases(newest), k))
        model.half_life_days, model.half_life_orders = decay.days, decay.orders
    if type(model) is not Recommender and section.pipeline.popularity_days is None:
        model.popularity_days = data.once("window", (newest, k), lambda: choose_popularity_days(data.cases(newest), k))
    if isinstance(model, TwoStage):
        _choose_for_sources(model, data, newest, k)


def _choose_for_sources(model: TwoStage, data: InteractionData, newest: tuple[date, ...], k: int) -> None:
    """The second decay of own purchases, and the days that segments and co-visitation look back, where they are on."""
    few, first = model.min_users, model.settings.decay
    second = data.once("second decay", (newest, k, first), lambda: choose_second_decay(data.cases(newest), k, first))
    model.second_half_life_days, model.second_half_life_orders = second.days, second.orders
    if model.with_segment_popularity:
        model.segment_days = data.once(
            "segment days",
            (newest, k),
            lambda: choose_segment_days(data.cases(newest), k, few, data.categories, data.segments),
        )
    if model.with_co_visitation:
        model.co_visitation_days = data.once(
            "co-visitation days",
            (newest, k, first),
            lambda: choose_co_visitation_days(data.cases(newest), k, few, model.item_neighbours, first),
        )


def _judged(
    lists: Ranked, model: Recommender, data: InteractionData, targets: interactions.Targets, k: int, suffix: str, items: Items
) -> dict[str, Any]:
    """The columns of one kind of list."""
    count, novel = len(targets.users), bool(suffix)
    item = take(model.catalogue_, lists.item, lists.late)
    place = codes(item, data.histories.items)
    hits = np.zeros((count, k), bool)
    hits[lists.row, lists.rank] = targets.holds(lists.row, place, novel)
    relevant = targets.sizes(novel)
    beyond_accuracy = of_lists(lists.row, place, count, items)
    bias = _mean(*targets.entries(novel), items.bits, count) - beyond_accuracy["novelty"]
    shares = {} if novel else {"repeats": _mean(lists.row, np.arange(len(place)), targets.repeats(lists.row, place), count)}
    shares |= {} if novel else {"bought_repeats": 1 - targets.sizes(True) / np.maximum(relevant, 1)}
    return {
        f"items{suffix}": _per_row(lists.row, item, count),
        f"sources{suffix}": _per_row(lists.row, np.array(SOURCES)[lists.source], count),
        f"bought{suffix}": relevant,
        **shares,
        **{f"{name}{suffix}": value for name, value in per_user(hits, relevant).items()},
        **{f"{name}{suffix}": value for name, value in {**beyond_accuracy, "popularity_bias": bias}.items()},
    }


def _mean(row: np.ndarray, place: np.ndarray, values: np.ndarray, rows: int) -> np.ndarray:
    """Mean of values[place] per row, nan for a row without entries."""
    size = np.bincount(row, minlength=rows)
    return np.where(size > 0, np.bincount(row, values[place], minlength=rows) / np.maximum(size, 1), np.nan)


def _per_row(row: np.ndarray, values: np.ndarray, count: int) -> pl.Series:
    """A list per row; `row` is sorted."""
    rows = pl.DataFrame({"row": row, "value": values}).group_by("row", maintain_order=True).agg("value")
    return pl.DataFrame({"row": np.arange(count)}).join(rows, on="row", how="left", maintain_order="left")["value"]


KIND = Recommendation()
