"""The plots of the steps' tables: each with its title, how to read it, and its Vega-Lite spec.

The page draws from these specs, and so does `dvc plots`: dvc_templates.py writes them to .dvc/plots.
"""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from evergreen.monitoring.report import formatting
from evergreen.monitoring.report.marks import (
    BY_CLUSTER,
    STROKES,
    across,
    band,
    bars,
    best_of,
    bins,
    cells,
    constant,
    diagonal,
    dots,
    first_of,
    groups,
    interval,
    lines,
    name,
    number,
    on,
    palette,
    percent,
    powers,
    written,
    zero,
)
from evergreen.monitoring.report.vega import BASELINE, HEIGHT, INK, MODEL, ROWS, SECOND, SOFT, Spec, columns


@dataclass(frozen=True)
class Plot:
    title: str
    caption: str
    """How to read it, in one or two plain sentences."""
    spec: Spec | Callable[[pl.DataFrame], Spec]
    """Without data; a function where it depends on the table."""
    overlaid: bool = False
    """`dvc plots diff` draws revisions over each other; else beside each other."""
    height: int = HEIGHT
    rows: int = ROWS

    def of(self, table: pl.DataFrame) -> Spec | None:
        """The spec for a table; None where the table lacks a column."""
        try:
            spec = self.spec(table) if callable(self.spec) else self.spec
        except pl.exceptions.ColumnNotFoundError:
            return None
        return spec if columns(spec) <= set(table.columns) else None


def _curve(title: str, caption: str, spec: Spec, height: int = HEIGHT) -> Plot:
    return Plot(title, caption, spec, overlaid=True, height=height)


CLASSIFICATION = {
    "gain": _curve(
        "Gain",
        "Ask only the most likely share of all, and this many of the positives are among them.",
        lines(percent("share_of_rows", "share of cases asked, best first"), percent("share_found", "share of positives found")),
    ),
    "roc": _curve(
        "ROC",
        "Positives found against false alarms, at every threshold; the further up and left, the better.",
        lines(
            percent("false_positive_rate", "share of negatives called positive"),
            percent("true_positive_rate", "share of positives found"),
        ),
    ),
    "precision_recall": _curve(
        "Precision and recall",
        "The more positives are to be found, the more of the calls are wrong.",
        lines(percent("recall", "recall: share of positives found"), percent("precision", "precision", zero=True)),
    ),
    "calibration": _curve(
        "Calibration",
        "Tenths of the rows by probability: on the dashed line, what is predicted is what happens.",
        lines(
            percent("predicted", "predicted probability", zero=True),
            percent("observed", "share that came true", zero=True),
            diagonal("predicted", "observed"),
            points=True,
        ),
    ),
    "scores": Plot(
        "Probabilities",
        "The less the two overlap, the better the model tells them apart.",
        {
            "transform": first_of("series"),
            "layer": [bins("share_of_negatives", "negatives"), bins("share_of_positives", "positives")],
            "encoding": {
                "x": percent("low", "predicted probability"),
                "y": percent("share_of_negatives", "share of the class"),
                "color": palette({"negatives": BASELINE, "positives": MODEL}),
            },
        },
    ),
    "confusion": Plot(
        "Confusion",
        "Rows by label and prediction at the threshold; the darker, the larger the share of its label.",
        cells(
            name("predicted", "predicted") | {"sort": "ascending"},
            name("label", "label") | {"sort": "ascending"},
            "datum.rows / datum.total",
            "format(datum.rows, ',')",
            {"joinaggregate": [{"op": "sum", "field": "rows", "as": "total"}], "groupby": ["label"]},
            row=None,
        ),
    ),
}

REGRESSION = {
    "predicted_actual": Plot(
        "Predicted and actual",
        "One dot per row, evenly drawn from small to large predictions; on the dashed line both are the same.",
        dots(
            number("predicted", "predicted"),
            number("actual", "actual"),
            diagonal("predicted", "actual", "max(datum.min_predicted, datum.min_actual)"),
            color=constant(MODEL),
            fillOpacity=0.45,
            size=16,
        ),
        rows=700,
    ),
    "residuals": Plot(
        "Errors",
        "How far off, in the target’s unit; the narrower, the better. The widest hundredth is left out.",
        {
            "layer": [
                bins("share", "model", {"filter": "datum.series == 'model'"}),
                {
                    "transform": [{"filter": "datum.series != 'model'"}],
                    "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.6},
                    "encoding": {"x": on("low"), "y": on("share"), "color": {"datum": "baseline"}},
                },
                zero(),
            ],
            "encoding": {
                "x": number("low", "actual minus predicted"),
                "y": percent("share", "share of rows"),
                "color": palette({"model": MODEL, "baseline": BASELINE}),
            },
        },
    ),
    "error_by_prediction": _curve(
        "Error by size",
        "How far off predictions are, from the smallest tenth to the largest.",
        lines(
            number("decile", "tenth of the rows by prediction, smallest first", {"tickCount": 10}),
            number("mae", "mean absolute error", zero=True),
            points=True,
        ),
    ),
}

CLUSTERING = {
    "profile": Plot(
        "What makes a group",
        "Means by group. Green is above the mean of all, orange below; the stronger, the further away.",
        cells(
            name("group", "group and its size", labelExpr="split(datum.label, '|')") | {"sort": "ascending"},
            name("feature"),
            "datum.deviations / 1.5",
            written("mean"),
            {"calculate": "datum.cluster + '|' + format(100 * datum.share, '.2~r') + ' %'", "as": "group"},
        ),
    ),
    "projection": Plot(
        "The map",
        "Rows on the two directions in which they differ most; the colour is the group.",
        dots(
            number("first", "first direction"), number("second", "second direction"), color=BY_CLUSTER, fillOpacity=0.5, size=14
        ),
    ),
    "silhouettes": Plot(
        "How sure the groups are",
        "One place per row: near 1 it sits deep in its group, below 0 it would fit another group better.",
        {
            "layer": [
                {"mark": {"type": "area", "opacity": 0.6}, "encoding": {"color": BY_CLUSTER}},
                {
                    "transform": [{"aggregate": [{"op": "mean", "field": "silhouette", "as": "mean"}]}],
                    **across("y", on("mean")),
                },
            ],
            "encoding": {
                "x": number("place", "rows of each group, the surest first", {"labels": False, "grid": False}),
                "y": number("silhouette", "silhouette", zero=True) | {"stack": None},
            },
        },
    ),
}

METRICS = ("ndcg", "recall", "ndcg_novel", "recall_novel")
METRIC_LABELS = {each: formatting.label(each).replace(",", "").replace(" ", "|") for each in METRICS}
MEASURES = {each: formatting.label(each) for each in ("novelty", "diversity", "dissimilarity", "repeats")}


def _by_history(metric: str) -> Spec:
    return lines(number("visits", "visits before the cutoff"), number(metric, formatting.label(metric), zero=True), points=True)


def _sources() -> Spec:
    return bars(percent("share", "share of all places in the lists", zero=True), name("source") | {"sort": "-x"})


def _gain(suffix: str, series: str, shift: int) -> list[Spec]:
    """A dot with its interval per row, `shift` pixels below the middle."""
    both = {"color": {"datum": series}}
    bar = {"x": on(f"low{suffix}"), "x2": {"field": f"high{suffix}"}, **both}
    return [
        {"mark": {"type": "rule", "strokeWidth": 1.4, "yOffset": shift}, "encoding": bar},
        {"mark": {"type": "point", "size": 40, "yOffset": shift}, "encoding": {"x": on(f"gain{suffix}"), **both}},
    ]


DIAL: Spec = {
    "transform": [{"filter": "datum.dial == 0 || datum.dial == 1"}],
    "mark": {"type": "text", "dx": 7, "dy": -7},
    "encoding": {"text": on("dial"), "color": constant(SOFT)},
}
RECOMMENDATION = {
    "ndcg_by_history": _curve(
        "By length of history", "How good the lists are for users with few and with many visits.", _by_history("ndcg")
    ),
    "ndcg_novel_by_history": _curve(
        "New items, by length of history", "The same for lists of items that the user never bought.", _by_history("ndcg_novel")
    ),
    "candidates": Plot(
        "What each source is worth",
        "The candidates of the last window, sorted by one source alone and by the whole model.",
        cells(
            name("metric", labelExpr=f"split({METRIC_LABELS}[datum.label], '|')"),
            name("source"),
            "datum.score / datum.best",
            written("score"),
            {"fold": list(METRICS), "as": ["metric", "score"]},
            best_of("score", "metric"),
        ),
    ),
    "ablations": Plot(
        "What the whole loses without a source",
        "Both stages learned again without it, on a sample: left of zero it is missed; a bar across zero cannot tell.",
        {
            "transform": [{"filter": "datum.variant != 'all sources'"}],
            "height": {"step": 40},
            "layer": [zero(color=INK, strokeDash=[]), *_gain("", "all items", -5), *_gain("_novel", "new items", 5)],
            "encoding": {
                "x": number("gain", "change of NDCG"),
                "y": name("variant"),
                "color": palette({"all items": MODEL, "new items": SECOND}),
            },
        },
    ),
    "hidden_items": Plot(
        "Items that nobody has bought yet",
        "Some items were hidden as if they were new: how well their attributes find who buys them; bars are 95 % intervals.",
        {
            "height": {"step": 30},
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 1.4}, "encoding": {"x": on("low"), "x2": {"field": "high"}}},
                {"mark": {"type": "point", "size": 40}},
            ],
            "encoding": {
                "x": number("ndcg", "NDCG among hidden items", zero=True),
                "y": name("order"),
                "color": constant(MODEL),
            },
        },
    ),
    "by_visits": _curve(
        "New and old customers",
        "How good the lists are by the visits before the cutoff, also for users without any; bars are 95 % intervals.",
        groups("visits", "visits before the cutoff", number("ndcg", "NDCG", zero=True), interval(constant(SOFT))),
    ),
    "short_histories": _curve(
        "What a short history is worth",
        "The same long-known users, had only so many of their newest visits been known. What was learned stays.",
        groups(
            "visits_known",
            "newest visits known",
            number("ndcg", "NDCG", zero=True),
            interval(constant(SOFT)),
            color=constant(MODEL),
        ),
    ),
    "by_buyers": _curve(
        "Rare and popular items",
        "Which share of what is bought was in the buyer's list, by how many users had bought the item before.",
        groups("buyers", "users who bought the item before", percent("found", "found", zero=True)),
    ),
    "diversity": _curve(
        "What diversity costs",
        "Lists of the last window with lists.diversity from 0 to 1: how mixed they get, and how good they stay.",
        lines(
            percent("diversity", "pairs of different categories in a list"),
            number("ndcg", "NDCG", zero=True),
            DIAL,
            points=True,
        ),
    ),
    "lists": Plot(
        "List statistics",
        "Beside what is really bought: how little known the items are (bits), how different from each other, how many repeats.",
        cells(
            name("series", labelExpr="split(datum.label, ', ')"),
            name("measure", labelExpr=f"{MEASURES}[datum.label] || datum.label"),
            "datum.value / datum.best",
            "format(datum.value, datum.places) + '\\n± ' + format((datum.high - datum.low) / 2, datum.places)",
            best_of("value", "measure"),
            {"calculate": "datum.value > 1 ? ',.2f' : ',.3f'", "as": "places"},
            row=40,
            rise=6,
        ),
    ),
    "sources": Plot(
        "Where the lists come from", "Each place in a list is credited to the source that ranked its item highest.", _sources()
    ),
    "sources_novel": Plot("Where new items come from", "The same for lists of items that the user never bought.", _sources()),
    "catalogue": _curve(
        "How wide the choice is",
        "The lower the curve, the more of the catalogue the lists use.",
        lines(
            percent("share_of_catalogue", "share of the catalogue, most frequent first", type="log"),
            percent("share_of_entries", "share of all places"),
        ),
        height=250,
    ),
}

SHOWN = 10
"""Most columns in one picture."""
SEEN = palette({"training": BASELINE, "validation": MODEL}, field="series", legend=STROKES)
LEVELS = {"low": SECOND, "middle": SOFT, "high": MODEL}


def _score(table: pl.DataFrame) -> Spec:
    return number("score", formatting.label(table["metric"][0]))


def _learning_curve(table: pl.DataFrame) -> Spec:
    return lines(number("rows", "training rows"), _score(table), band(), points=True, color=SEEN)


def _validation_curve(table: pl.DataFrame) -> Spec:
    """Numbers on a line or in powers, other settings side by side; the chosen one is marked."""
    title, chosen = formatting.plain(table["parameter"][0]), table["chosen"].cast(pl.String).fill_null("none")[0]
    if table["value"].dtype.is_numeric():
        x, transform, chosen = (powers if table["log"][0] else number)("value", title), [], float(chosen)
    else:
        text = "isValid(datum.value) ? '' + datum.value : 'none'"
        x, transform = name("setting", title), [{"calculate": text, "as": "setting"}]
    at = {"data": {"values": [{"at": chosen}]}}
    place = {"field": "at", "type": x["type"]}
    note: Spec = {"mark": {"type": "text", "text": "chosen"}, "encoding": {"x": place, "y": constant(-5)}}
    note["encoding"]["color"] = constant(SOFT)
    drawn = lines(x, _score(table), band(), at | across("x", place), at | note, points=True, color=SEEN)
    return drawn | {"transform": transform}


def _contributions(table: pl.DataFrame) -> Spec:
    """One dot per row and column, spread where there are many; the colour is the size of the column's value."""
    first, shown = table["output"][0], table["column"].unique(maintain_order=True).head(SHOWN).to_list()
    bins = 60 / (max(map(abs, table["contribution"]), default=0.0) or 1.0)
    level = "!isValid(datum.place) ? 'missing' : datum.place < 1/3 ? 'low' : datum.place < 2/3 ? 'middle' : 'high'"
    colours = LEVELS | ({"missing": BASELINE} if table["place"].null_count() else {})
    dot = {
        "y": name("column"),
        "yOffset": {"field": "shift", "type": "quantitative", "scale": {"domain": [-0.5, 0.5]}},
        "color": palette(colours, field="level"),
    }
    return {
        "transform": [
            {"filter": {"and": [{"field": "output", "equal": first}, {"field": "column", "oneOf": shown}]}},
            {"calculate": f"round({bins} * datum.contribution)", "as": "bin"},
            {"window": [{"op": "row_number", "as": "nth"}], "groupby": ["column", "bin"]},
            {"calculate": "clamp(0.055 * floor(datum.nth / 2) * (datum.nth % 2 ? 1 : -1), -0.4, 0.4)", "as": "shift"},
            {"calculate": level, "as": "level"},
        ],
        "height": {"step": 22},
        "layer": [
            zero(strokeDash=[], strokeWidth=0.8),
            {"mark": {"type": "point", "size": 8, "fillOpacity": 0.75}, "encoding": dot},
        ],
        "encoding": {"x": number("contribution", "added to the mean prediction")},
    }


EXPLANATION = {
    "learning_curve": Plot(
        "More rows",
        "The score by the number of training rows, on training and on validation rows. Where the two meet, more of the same "
        "rows help no further.",
        _learning_curve,
    ),
    **{
        f"validation_curve_{place}": Plot(
            title, "With the other settings as chosen; the band goes from the lowest fold to the highest.", _validation_curve
        )
        for place, title in ((1, "The setting that matters most"), (2, "The one after it"))
    },
    "bias_variance": Plot(
        "Bias-variance decomposition",
        "Its squared error on other rows. More rows or a simpler model take away variance, a richer model bias, nothing takes "
        "away noise.",
        bars(
            percent("share", "share of what varies in the target", zero=True),
            name("part"),
            color={"field": "part", "type": "nominal", "sort": None, "legend": None, "scale": {"range": [BASELINE, MODEL]}},
            row=32,
        ),
    ),
    "permutation": Plot(
        "Feature importance",
        "What of its score on rows it never saw is lost when a column is shuffled; the line is the interval. Columns that say "
        "the same stand in for each other.",
        bars(
            number("importance", "score lost", {"tickCount": 3}, zero=True),
            name("column"),
            {"mark": {"type": "rule", "strokeWidth": 1.4, "color": INK}, "encoding": {"x": on("low"), "x2": {"field": "high"}}},
        )
        | {"transform": [{"window": [{"op": "row_number", "as": "rank"}]}, {"filter": f"datum.rank <= {SHOWN}"}]},
    ),
    "contributions": Plot(
        "What moves a prediction",
        "One dot per row: what the column added to its prediction or took from it (Shapley values; they add up to the "
        "prediction). The colour is the size of the column's value.",
        _contributions,
        rows=10_000,
    ),
}

OF_KIND: dict[str, dict[str, Plot]] = {
    "classification": CLASSIFICATION,
    "regression": REGRESSION,
    "clustering": CLUSTERING,
    "recommendation": RECOMMENDATION,
}
"""The plots of evaluate of each kind."""
OF_EVALUATE: dict[str, Plot] = CLASSIFICATION | REGRESSION | CLUSTERING | RECOMMENDATION
PLOTS: dict[str, Plot] = OF_EVALUATE | EXPLANATION
"""Plot name -> how it is drawn, in the order of the page."""
