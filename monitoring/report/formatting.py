"""Numbers, days and metrics as people read them: sensible digits, thousands separators, no powers of ten."""

import math
import re
from datetime import UTC, date, datetime
from typing import Any

MISSING = "–"

METRICS: dict[str, tuple[str, str]] = {
    "roc_auc": (
        "ROC AUC",
        "How often a random positive case gets a higher probability than a random negative one: 0.5 is guessing, 1 is perfect.",
    ),
    "average_precision": (
        "Average precision",
        "The precision of the ranked list, averaged over all depths; guessing scores the share of positives.",
    ),
    "accuracy": ("Accuracy", "The share of cases that are put on the right side of the threshold."),
    "precision": ("Precision", "Of the cases called positive, the share that is."),
    "recall": ("Recall", "Of what is right (the positive cases, the items bought), the share that is found."),
    "f1": ("F1", "The harmonic mean of precision and recall: high only when both are."),
    "log_loss": (
        "Log loss",
        "How surprised the probabilities are by what happened; a confident mistake costs most. Lower is better.",
    ),
    "brier": ("Brier score", "The mean squared distance of the probability from what happened (0 or 1). Lower is better."),
    "rmse": ("RMSE", "The typical error in the target's unit; large errors weigh more. Lower is better."),
    "mae": ("MAE", "The mean absolute error in the target's unit. Lower is better."),
    "r2": ("R²", "The share of the target's variance that is explained: 0 is as good as the mean, 1 is perfect."),
    "silhouette": (
        "Silhouette",
        "How much closer cases lie to their own group than to the next one: 1 is apart, 0 is on the border.",
    ),
    "davies_bouldin": ("Davies-Bouldin", "How wide groups are compared with the gaps between them. Lower is better."),
    "stability": (
        "Stability",
        "How alike the groups come out when learned again from a resample (adjusted Rand index): 1 is the same.",
    ),
    "ndcg": ("NDCG", "How many of the right items are in the list and how far up: 1 is the ideal order."),
    "map": ("MAP", "Precision averaged over the places of the right items, then over users."),
    "hit_rate": ("Hit rate", "The share of users with at least one right item in their list."),
    "coverage": ("Coverage", "The share of the catalogue that appears in anybody's list."),
    "coverage_50": ("Items for 50 users", "How many items there are in the lists of 50 users, drawn at random."),
    "novelty": (
        "Novelty",
        "How little known the listed items are, in bits: what half of all users bought has 1, one in a thousand 10.",
    ),
    "diversity": ("Diversity", "The share of pairs of items in a list that are of different categories."),
    "dissimilarity": (
        "Dissimilarity",
        "How little the buyers of two items of a list are the same: 1 is nobody in common, 0 is everybody.",
    ),
    "repeats": ("Repeats", "The share of items in a list that the user bought before."),
    "popularity_bias": (
        "Popularity bias",
        "How much better known the listed items are than what is then bought, in bits: 1 is twice as many buyers, 0 is none.",
    ),
}
"""Metric -> its name for people and one plain sentence."""

NOVEL = ("New items", "Only items that the user never bought before count, and only such items are in the list.")
"""What the suffix _novel of a recommender's metric means."""


def label(metric: str) -> str:
    """The metric's name for people.

    >>> label("roc_auc"), label("ndcg_novel"), label("top_share")
    ('ROC AUC', 'NDCG, new items', 'Top share')
    """
    name = stem(metric)
    shown = METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()
    return f"{shown}, new items" if is_novel(metric) else shown


def meaning(metric: str) -> str | None:
    """One plain sentence about the metric; None for one we do not know."""
    return METRICS[stem(metric)][1] if stem(metric) in METRICS else None


def is_novel(metric: str) -> bool:
    return metric.endswith("_novel")


def stem(metric: str) -> str:
    """The metric, whatever items it counts."""
    return metric.removesuffix("_novel")


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def number(value: float | None, digits: int | None = None) -> str:
    """With `digits` decimals; None: three significant digits below 100, whole numbers above.

    >>> number(0.89449), number(1469307.2), number(12.34), number(0.00004), number(2), number(None)
    ('0.894', '1,469,307', '12.3', '0.00004', '2', '–')
    """
    if value is None or absent(value):
        return MISSING
    if digits is None:
        if isinstance(value, int) or abs(value) >= 100 or value == int(value):
            digits = 0
        else:
            digits = min(max(2 - math.floor(math.log10(abs(value))), 0), 8)
            text = f"{value:,.{digits}f}"
            return minus(text.rstrip("0").rstrip(".") if abs(value) < 0.01 else text)
    return minus(f"{value:,.{digits}f}")


def minus(text: str) -> str:
    """With a real minus sign, and none before zero."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else "−" + text[1:]
    return text


def signed(value: float | None, digits: int | None = None) -> str:
    text = number(value, digits)
    return f"+{text}" if value is not None and not absent(value) and value > 0 and text.strip("0.,") else text


def digits(*values: float | None) -> int:
    """Decimals that show two digits of the range of `values`, from 0 to 4."""
    known = [each for each in values if each is not None and not absent(each)]
    width = max(known) - min(known) if known else 0.0
    if width <= 0:
        return 3 if known and abs(known[0]) < 10 else 1
    return min(max(1 - math.floor(math.log10(width)), 0), 4)


def seen(places: int, *values: float | None) -> int:
    """Decimals, `places` or up to 4, with which none of `values` but zero reads as zero.

    >>> seen(2, 0.204, 0.0004), seen(3, 0.907, 0.5), seen(1, 0.0, None)
    (4, 3, 1)
    """
    known = [abs(each) for each in values if each is not None and not absent(each) and each]
    return min(max(places, -math.floor(math.log10(min(known)))), 4) if known else places


def share(value: float | None) -> str:
    """A share of 1 as per cent.

    >>> share(0.07514), share(0.00031), share(1), share(0.000001)
    ('7.5 %', '0.03 %', '100 %', 'under 0.01 %')
    >>> share(0.95), share(0)
    ('95 %', '0 %')
    """
    if value is None or absent(value):
        return MISSING
    percent = 100 * value
    if 0 < percent < 0.01:
        return "under 0.01 %"
    places = 2 if percent < 0.1 else 1
    return f"{percent:.{places}f}".removesuffix(".0") + " %" if percent else "0 %"


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.42), duration(38.4), duration(192), duration(3900)
    ('0.4 s', '38 s', '3 min 12 s', '1 h 05 min')
    """
    if seconds is None or absent(seconds):
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(megabytes: float | None) -> str:
    if megabytes is None or absent(megabytes):
        return MISSING
    return f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def day(value: Any) -> str:
    """A date, a time or ISO text as a day; any other text as it is.

    >>> day("2017-12-03"), day(None)
    ('3 December 2017', '–')
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    return f"{value.day} {value:%B %Y}" if isinstance(value, date) else MISSING


def short_day(value: Any) -> str:
    """
    >>> short_day("2017-12-03")
    '3 Dec 2017'
    """
    return re.sub(r" ([A-Z][a-z]{2})[a-z]* ", r" \1 ", day(value))


def moment(value: Any) -> str:
    """A time in UTC, to the minute."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if not isinstance(value, datetime):
        return day(value)
    value = value.astimezone(UTC) if value.tzinfo else value
    return f"{day(value)}, {value:%H:%M} UTC"


def counted(many: int, one: str, more: str | None = None) -> str:
    """
    >>> counted(1, "model"), counted(1200, "row"), counted(0, "query", "queries")
    ('1 model', '1,200 rows', '0 queries')
    """
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def plain(name: Any) -> str:
    """A name of the code as words: underscores become spaces."""
    return str(name).replace("_", " ")


def setting(value: Any) -> str:
    """A value of a configuration or of lineage as a person reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(setting(each) for each in value) or "none"
    return str(value)
