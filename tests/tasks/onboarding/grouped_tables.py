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
