"""Made tables with what rows, columns and classes have to do with each other; the target is the last column."""

import numpy as np
import polars as pl

ROWS = 400


def groups(rows: int = ROWS, each: int = 10, seed: int = 0) -> pl.DataFrame:
    """Patients with a number, `each` rows of measurements around their own level, and a label drawn per patient."""
    draw = np.random.default_rng(seed)
    count = rows // each
    who = np.repeat(np.arange(count), each)
    level, label = draw.normal(size=(count, 4)), draw.choice(["no", "yes"], count)
    measured = level[who] + draw.normal(0, 0.2, (rows, 4))
    numbers = draw.choice(np.arange(1_000, 9_999), count, replace=False)
    order = draw.permutation(rows)
    return pl.DataFrame(
        {"customer_no": numbers[who]} | {f"m{place}": measured[:, place].round(3) for place in range(4)} | {"y": label[who]}
    )[order]


def panel(countries: int = 40, years: int = 10, seed: int = 0) -> pl.DataFrame:
    """Countries by year: levels of their own that change slowly, and a target with a level of each country."""
    draw = np.random.default_rng(seed)
    who, year = np.repeat(np.arange(countries), years), np.tile(np.arange(years), countries)
    income, people, level = draw.normal(9, 1, countries), draw.normal(16, 1.5, countries), draw.normal(70, 8, countries)
    return pl.DataFrame(
        {
            "country": [f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[each % 26]}land {each}" for each in who],
            "year": 1980 + 3 * year,
            "income": np.exp(income[who] + 0.02 * year + draw.normal(0, 0.02, len(who))).round(1),
            "people": np.exp(people[who] + 0.015 * year).round(),
            "life": (level[who] + 0.3 * year + draw.normal(0, 0.5, len(who))).round(2),
        }
    )


def stores(rows: int = ROWS, count: int = 12, seed: int = 0) -> pl.DataFrame:
    """Sales by store, weekday and price: the store is worth knowing, and nothing else of it is in the table."""
    draw = np.random.default_rng(seed)
    store, level = draw.integers(0, count, rows), draw.normal(0, 30, count)
    price, day = draw.uniform(1, 9, rows), draw.integers(1, 8, rows)
    sales = 200 + level[store] - 8 * price + 5 * (day > 5) + draw.normal(0, 10, rows)
    return pl.DataFrame({"store_id": store + 101, "price": price.round(2), "day": day, "sales": sales.round(1)})


def sum3(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    net, tax, shipping = draw.gamma(3, 40, rows).round(2), draw.gamma(2, 6, rows).round(2), draw.choice([0.0, 4.9, 9.9], rows)
    items = draw.integers(1, 9, rows)
    return pl.DataFrame(
        {"items": items, "net": net, "tax": tax, "shipping": shipping, "total": (net + tax + shipping).round(2)}
    )


def band(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """The target's logarithm and a band of it, beside two honest columns."""
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(2, rows))
    price = np.exp(5 + 0.5 * a + 0.3 * b + draw.normal(0, 0.4, rows)).round(2)
    bands = np.select([price < 90, price < 160, price < 280], ["low", "middle", "high"], "top")
    return pl.DataFrame({"a": a, "b": b, "log_price": np.log(price).round(4), "price_band": bands, "price": price})


def labelled(target: np.ndarray | list, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    return pl.DataFrame({"a": draw.normal(size=len(target)), "b": draw.choice(["x", "y"], len(target)), "y": target})


def sloppy_target(rows: int = ROWS) -> pl.DataFrame:
    return labelled(np.random.default_rng(1).choice(["yes", "Yes", "no", "no ", "NO"], rows))


def floatclass(rows: int = ROWS) -> pl.DataFrame:
    return labelled(np.random.default_rng(1).choice([1.0, 2.0, 3.0], rows))


def codes12(rows: int = ROWS) -> pl.DataFrame:
    return labelled(np.random.default_rng(1).choice([1, 2], rows, p=[0.7, 0.3]))


def pos12(rows: int = ROWS) -> pl.DataFrame:
    return labelled(np.random.default_rng(1).choice([1.0, 2.0], rows, p=[0.2, 0.8]))


def ungrouped(seed: int) -> pl.DataFrame:
    """A table whose rows stand for themselves, with much that looks like groups: codes that repeat, equally often or not,
    with and without an effect, some with columns that follow from them; months with their weather; ordered factors."""
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(150, 1_500))
    levels = int(draw.integers(8, max(9, min(80, rows // 6))))
    even = draw.random() < 0.4
    shares = draw.dirichlet(np.full(levels, 2.0))
    code = draw.permutation(np.arange(rows) % levels) if even else draw.choice(levels, rows, p=shares)
    other = draw.integers(0, int(draw.integers(8, rows // 3)), rows)
    month = np.sort(draw.integers(1, 13, rows))
    numbers = draw.normal(size=(rows, 3)) @ draw.normal(size=(3, 3))
    warmth = 10 - 9 * np.cos(2 * np.pi * month / 12) + draw.normal(0, 3, rows)
    columns = {
        "branch": 100 + code if draw.random() < 0.5 else np.array([f"b{each:03}" for each in code]),
        "client_id": 5_000 + other,
        "month": month,
        "warmth": warmth.round(1),
        "count": draw.poisson(4, rows),
        "dose": 5 * (np.arange(rows) % 9),
        "a": numbers[:, 0].round(2),
        "b": numbers[:, 1],
        "c": numbers[:, 2].round(1),
    }
    if draw.random() < 0.5:
        columns["region"] = np.array(["north", "south", "east", "west"])[code % 4]
    signal = draw.normal(0, draw.choice([0, 1, 2]), levels)[code] + numbers @ draw.normal(size=3) + warmth * draw.normal(0, 0.1)
    signal += columns["dose"] * draw.normal(0, 0.05) + draw.normal(0, draw.choice([0.3, 1, 3]), rows)
    kind = draw.choice(["number", "two", "three"])
    if kind == "number":
        columns["y"] = signal.round(3)
    else:
        cuts = np.quantile(signal, [0.7] if kind == "two" else [0.4, 0.8])
        columns["y"] = np.array(["no", "yes", "maybe"])[np.searchsorted(cuts, signal)]
    return pl.DataFrame(columns)


def grouped(seed: int) -> pl.DataFrame:
    """Rows of entities with a level of their own in every column; equally many rows each, or visits that are numbered, or facts
    that stay the same. A label is drawn per entity or follows its level."""
    draw = np.random.default_rng(seed)
    count, shape = int(draw.integers(25, 120)), draw.choice(["equal", "visits", "facts"])
    each = np.full(count, draw.integers(4, 15)) if shape == "equal" else draw.integers(2, 12, count)
    who = np.repeat(np.arange(count), each)
    rows = len(who)
    level = draw.normal(size=(count, 4))
    measured = level[who] + draw.normal(0, draw.choice([0.05, 0.2, 0.4]), (rows, 4))
    names = draw.permutation(np.arange(count)) + 300
    columns = {"subject": names[who] if draw.random() < 0.5 else np.array([f"s{each}" for each in names])[who]}
    if shape == "visits":
        columns["visit"] = np.concatenate([np.arange(1, size + 1) for size in each])
    if shape == "facts":
        columns |= {"age": draw.integers(20, 80, count)[who], "height": draw.normal(170, 9, count).round(1)[who]}
    columns |= {f"m{place}": measured[:, place].round(3) for place in range(4)}
    effect = draw.normal(0, 2, count)
    kind = draw.choice(["label", "number", "fixed number"])
    if kind == "label":
        columns["y"] = np.where(effect > 0, "yes", "no")[who]
    else:
        columns["y"] = (effect[who] + (draw.normal(0, 0.5, rows) if kind == "number" else 0)).round(3)
    return pl.DataFrame(columns)[draw.permutation(rows)]
