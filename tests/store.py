"""A small store with planted answers: the worked example's tables, made up, with its dirt in small numbers.

What a model can find, and what a test may hold it to:

- **colour**: a household buys goods of aisles whose number is as even as its id (all but one line in forty), mostly its
  own eight favourites again and again. Popularity cannot see that.
- **segment**: `household_id % 3`. 0: three baskets a week worth about 5; 1: one a week, about 50; 2: one in two weeks, 15.
- **spend**: each household has a level of its own (log-normal) that stays for the whole year.
- **coupons**: a household is keen or not, and mostly stays so from week to week. Keen ones redeem in nearly every second week,
  others hardly ever; keen ones are also invited to campaigns and use coupons at the till.

Weeks are Monday-based; week 1 is the single Sunday 2017-01-01. Timestamps carry no zone and are UTC; the store is in New York.
"""

import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import pipeline_file
from tests import ROOT

FIRST = date(2017, 1, 1)
AISLES, PER_AISLE, FAVOURITES = 8, 12, 8
VISITS = np.array([3.0, 1.0, 0.5])
"""Segment -> baskets per week."""
LINES = np.array([2, 8, 3])
"""Segment -> lines per basket."""
PRICE = np.array([1.0, 2.5, 2.0])
"""Segment -> price level."""
STAYS = 0.96
"""Chance that a keen household is keen in the next week."""
FUEL, MISCELLANEOUS, COUPON, UNKNOWN = 900, 901, 902, 999_999


def last_day(weeks: int) -> date:
    """The Sunday that ends week `weeks`."""
    return FIRST + timedelta(days=7 * (weeks - 1))


def make(folder: Path, households: int = 240, weeks: int = 30, seed: int = 0) -> None:
    """Write one parquet file per table into `folder`. The same arguments give the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    ids = np.arange(1, households + 1)
    keen = _keen(draw, households, weeks)
    descriptions = _campaign_descriptions(weeks)
    campaigns = _campaigns(draw, ids, keen, descriptions)
    coupons = _coupons(draw, descriptions)
    tables = {
        "products": _products(draw),
        "demographics": _demographics(draw, ids),
        "campaign_descriptions": descriptions,
        "campaigns": campaigns,
        "coupons": coupons,
        "coupon_redemptions": _redemptions(draw, ids, keen, descriptions, coupons),
        "transactions": _transactions(draw, ids, keen, weeks),
    }
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")


def project(folder: Path, households: int = 240, weeks: int = 30, seed: int = 0) -> Path:
    """A whole project in `folder`: tables under data-in, params.yaml, and copies of dvc.yaml and of the code it names."""
    make(folder / "data-in", households, weeks, seed)
    first = last_day(min(8, max(2, weeks - 14)))
    text = PARAMS.replace("AS_OF", str(last_day(weeks))).replace("FIRST", str(first))
    (folder / "params.yaml").write_text(text.replace("WINDOWS", "2" if weeks >= 26 else "1"))
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (folder / "src" / "evergreen").mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", "requirements.lock", "src/evergreen/model_types.py"):
        shutil.copy(ROOT / name, folder / name)
    pipeline_file.name_sources(Layout(folder), loading.load(folder / "params.yaml"))
    return folder


def _keen(draw: np.random.Generator, households: int, weeks: int) -> np.ndarray:
    """Whether a household is keen on coupons: one row per household, one column per week; about a quarter are."""
    state = np.empty((households, weeks), dtype=bool)
    state[:, 0] = draw.random(households) < 0.25
    for week in range(1, weeks):
        chance = np.where(state[:, week - 1], STAYS, (1 - STAYS) / 3)
        state[:, week] = draw.random(households) < chance
    return state


def _products(draw: np.random.Generator) -> pl.DataFrame:
    goods = AISLES * PER_AISLE
    aisle = np.arange(goods) // PER_AISLE
    rows = {
        "product_id": [*range(1000, 1000 + goods), FUEL, MISCELLANEOUS, COUPON],
        "manufacturer_id": [*draw.integers(1, 40, goods).tolist(), 69, 69, 69],
        "department": [*("GROCERY" if each < 6 else "PRODUCE" for each in aisle), "FUEL", "MISCELLANEOUS", "COUPON"],
        "brand": [*draw.choice(["National", "Private"], goods, p=[0.7, 0.3]).tolist(), "Private", "National", "National"],
        "product_category": [*(f"AISLE {each}" for each in aisle), "FUEL", None, "COUPON/MISC ITEMS"],
        "product_type": [*(f"AISLE {each} TYPE {i % 3}" for i, each in enumerate(aisle)), "GASOLINE", None, "COUPON"],
        "package_size": [None if i % 3 == 0 else f"{4 + i % 12} OZ" for i in range(goods + 3)],
    }
    return pl.DataFrame(rows)


def _demographics(draw: np.random.Generator, ids: np.ndarray) -> pl.DataFrame:
    known = np.sort(draw.choice(ids, len(ids) // 3, replace=False))
    bands = {
        "age": ["19-24", "25-34", "35-44", "45-54", "55-64", "65+"],
        "income": ["Under 15K", "35-49K", "50-74K", "250K+"],
        "home_ownership": ["Homeowner", "Renter", None],
        "marital_status": ["Married", "Unmarried", None],
        "household_size": ["1", "2", "3", "4", "5+"],
        "household_comp": ["1 Adult No Kids", "2 Adults No Kids", "2 Adults Kids"],
        "kids_count": ["0", "1", "2", "3+"],
    }
    columns = {name: draw.choice(np.array(values, dtype=object), len(known)).tolist() for name, values in bands.items()}
    return pl.DataFrame({"household_id": known, **columns})


def _campaign_descriptions(weeks: int) -> pl.DataFrame:
    """A new campaign every three weeks, each five weeks long: there is always one that runs."""
    starts = [FIRST + timedelta(days=21 * i) for i in range((weeks + 2) // 3)]
    return pl.DataFrame(
        {
            "campaign_id": list(range(1, len(starts) + 1)),
            "campaign_type": [f"Type {'ABC'[i % 3]}" for i in range(len(starts))],
            "start_date": starts,
            "end_date": [day + timedelta(days=34) for day in starts],
        }
    ).with_columns(pl.col("start_date", "end_date").cast(pl.Datetime("ns")))


def _campaigns(draw: np.random.Generator, ids: np.ndarray, keen: np.ndarray, descriptions: pl.DataFrame) -> pl.DataFrame:
    rows = []
    for campaign in descriptions["campaign_id"]:
        week = min(3 * (campaign - 1), keen.shape[1] - 1)
        invited = draw.random(len(ids)) < np.where(keen[:, week], 0.8, 0.15)
        rows += [(campaign, household) for household in ids[invited].tolist()]
    return pl.DataFrame(rows, schema={"campaign_id": pl.Int64, "household_id": pl.Int64}, orient="row")


def _coupons(draw: np.random.Generator, descriptions: pl.DataFrame) -> pl.DataFrame:
    """Ten coupons per campaign, each for six goods; one row in twenty is there twice."""
    rows = [
        (10_000_000_000 + 100 * campaign + i, int(product), campaign)
        for campaign in descriptions["campaign_id"].to_list()
        for i in range(10)
        for product in np.sort(draw.choice(np.arange(1000, 1000 + AISLES * PER_AISLE), 6, replace=False))
    ]
    twice = [rows[i] for i in sorted(draw.choice(len(rows), len(rows) // 20, replace=False))]
    schema = {"coupon_upc": pl.Int64, "product_id": pl.Int64, "campaign_id": pl.Int64}
    return pl.DataFrame(rows + twice, schema=schema, orient="row")


def _redemptions(
    draw: np.random.Generator, ids: np.ndarray, keen: np.ndarray, descriptions: pl.DataFrame, coupons: pl.DataFrame
) -> pl.DataFrame:
    redeems = draw.random(keen.shape) < np.where(keen, 0.5, 0.005)
    which, week = np.nonzero(redeems)
    day = _days(draw, week)
    campaign = np.minimum(day // 21 + 1, len(descriptions))
    upc = 10_000_000_000 + 100 * campaign + draw.integers(0, 10, len(day))
    dates = np.datetime64(FIRST) + day.astype("timedelta64[D]")
    table = pl.DataFrame({"household_id": ids[which], "coupon_upc": upc, "campaign_id": campaign, "redemption_date": dates})
    return table.with_columns(pl.col("redemption_date").cast(pl.Datetime("ns"))).sort(
        "redemption_date", "household_id", "coupon_upc"
    )


def _days(draw: np.random.Generator, week: np.ndarray) -> np.ndarray:
    """A day (0 = 2017-01-01) in each week (0 = the single Sunday)."""
    return np.where(week == 0, 0, 7 * week - 6 + draw.integers(0, 7, len(week)))


def _transactions(draw: np.random.Generator, ids: np.ndarray, keen: np.ndarray, weeks: int) -> pl.DataFrame:
    """One row per household, basket and product, sorted by time."""
    baskets = _baskets(draw, ids, weeks)
    lines = _lines(draw, baskets, ids, keen)
    table = pl.concat([lines, _dirt(draw, baskets, lines)])
    return (
        table.unique(["household_id", "basket_id", "product_id"], keep="first", maintain_order=True)
        .with_columns(
            pl.col("transaction_timestamp")
            .dt.replace_time_zone("America/New_York", ambiguous="earliest")
            .dt.convert_time_zone("UTC")
            .dt.replace_time_zone(None)
        )
        .sort("transaction_timestamp", "household_id", "basket_id", "product_id")
    )


def _baskets(draw: np.random.Generator, ids: np.ndarray, weeks: int) -> pl.DataFrame:
    """One row per visit, between 7:00 and midnight local time: in UTC a late one lies in the next day or week."""
    rate = np.repeat(VISITS[ids % 3][:, None], weeks, axis=1)
    rate[:, 0] /= 7
    count = draw.poisson(rate)
    household, week = (np.repeat(each, count.ravel()) for each in np.indices(count.shape).reshape(2, -1))
    seconds = _days(draw, week) * 86_400 + draw.integers(7 * 3600, 24 * 3600, len(week))
    time = np.datetime64(FIRST).astype("datetime64[ns]") + seconds.astype("timedelta64[s]")
    frame = pl.DataFrame({"household_id": ids[household], "week": week + 1, "transaction_timestamp": time})
    return frame.sort("transaction_timestamp", "household_id").with_columns(
        basket_id=31_000_000_000 + pl.int_range(pl.len()), store_id=300 + pl.col("household_id") % 7
    )


def _lines(draw: np.random.Generator, baskets: pl.DataFrame, ids: np.ndarray, keen: np.ndarray) -> pl.DataFrame:
    segment = baskets["household_id"].to_numpy() % 3
    lines = baskets[np.repeat(np.arange(len(baskets)), 1 + draw.poisson(LINES[segment] - 1))]
    household, week = lines["household_id"].to_numpy(), lines["week"].to_numpy()
    product = _choose(draw, household, len(ids))
    quantity = 1 + (draw.random(len(lines)) < 0.15)
    level = np.exp(draw.normal(0, 0.35, len(ids)))[household - 1] * PRICE[household % 3]
    sales = quantity * level * (1 + product % PER_AISLE / 4) * draw.uniform(0.9, 1.1, len(lines))
    used = draw.random(len(lines)) < np.where(keen[household - 1, week - 1], 0.2, 0.002)
    coupon = np.where(used, sales * draw.uniform(0.1, 0.5, len(lines)), 0.0)
    return _frame(lines, product, quantity, sales, np.where(draw.random(len(lines)) < 0.2, sales * 0.15, 0.0), coupon)


def _choose(draw: np.random.Generator, household: np.ndarray, households: int) -> np.ndarray:
    """A product per line: seven in ten a favourite, the others any good of the household's colour, few of the other colour."""
    goods = np.arange(AISLES * PER_AISLE)
    of_colour = np.stack([goods[goods // PER_AISLE % 2 == colour] for colour in (0, 1)])
    favourites = np.stack([draw.choice(of_colour[each % 2], FAVOURITES, replace=False) for each in range(1, households + 1)])
    favourite = favourites[household - 1, draw.integers(0, FAVOURITES, len(household))]
    colour = np.where(draw.random(len(household)) < 1 / 12, 1 - household % 2, household % 2)
    other = of_colour[colour, draw.integers(0, of_colour.shape[1], len(household))]
    return 1000 + np.where(draw.random(len(household)) < 0.7, favourite, other)


def _dirt(draw: np.random.Generator, baskets: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """Lines that break a rule, one part in a few hundred each: see the comments."""

    def some(share: float) -> pl.DataFrame:
        return baskets[np.sort(draw.choice(len(baskets), max(2, round(len(baskets) * share)), replace=False))]

    zero = np.zeros(len(baskets))
    unknown, free, fuel, coupon, match, voucher = (some(share) for share in (0.01, 0.01, 0.02, 0.004, 0.001, 0.001))
    litres = draw.integers(1001, 9000, len(fuel))
    return pl.concat(
        [
            _frame(unknown, UNKNOWN, 0, zero[: len(unknown)], 0.0, 0.0),  # a product that products does not know, quantity 0
            _frame(free, MISCELLANEOUS, 0, zero[: len(free)], 0.0, 0.0),  # quantity 0 and sales 0 of a known product
            _frame(fuel, FUEL, litres, litres / 400, 0.0, 0.0),  # another unit: far above 1000
            _frame(coupon, 1000, 1, np.full(len(coupon), 0.5), 0.0, 1.0),  # coupon_disc above sales_value
            _frame(match, 1001, 1, np.full(len(match), 2.0), 0.0, 0.5, 0.75),  # coupon_match_disc above coupon_disc
            _frame(voucher, COUPON, 89_638, np.full(len(voucher), 1.0), 0.0, 0.0),
        ]
    )


def _frame(lines: pl.DataFrame, product, quantity, sales, retail, coupon, match=0.0) -> pl.DataFrame:
    """Rows of transactions from household, basket, store, week and time in `lines` and numbers or arrays for the rest."""
    size = len(lines)
    money = {"sales_value": sales, "retail_disc": retail, "coupon_disc": coupon, "coupon_match_disc": match}
    return lines.select(
        "household_id",
        "store_id",
        "basket_id",
        pl.Series("product_id", np.broadcast_to(product, size).astype(np.int64)),
        pl.Series("quantity", np.broadcast_to(quantity, size).astype(np.int64)),
        *(pl.Series(name, np.round(np.broadcast_to(value, size), 2).astype(float)) for name, value in money.items()),
        "week",
        "transaction_timestamp",
    )


PARAMS = """\
project: {name: small store, seed: 7, as_of: "AS_OF"}

problems:
  recommend: recommendation
  redeem: classification
  spend: regression
  segments: clustering

ingest:
  transactions:
    parquet: data-in/transactions.parquet
    time: transaction_timestamp
    stored_timezone: UTC
    local_timezone: America/New_York
  products: {parquet: data-in/products.parquet}
  demographics: {parquet: data-in/demographics.parquet}
  campaigns: {parquet: data-in/campaigns.parquet}
  campaign_descriptions: {parquet: data-in/campaign_descriptions.parquet, time: start_date}
  coupons: {parquet: data-in/coupons.parquet}
  coupon_redemptions: {parquet: data-in/coupon_redemptions.parquet, time: redemption_date}

validate:
  transactions:
    max_bad_share: 0.05
    unique: [household_id, basket_id, product_id]
    expectations:
      - {type: expect_column_values_to_be_between, kwargs: {column: quantity, min_value: 1}, name: quantity above 0}
      - {type: expect_column_values_to_be_between, kwargs: {column: quantity, max_value: 1000}, severity: warning}
      - {type: expect_column_values_to_not_be_null, kwargs: {column: household_id}}
  products: {unique: [product_id]}
  coupons: {drop_duplicates: true}

recommend:
  question: Which ten products will this household buy in the next four weeks?
  features:
    table: transactions
    user: household_id
    item: product_id
    basket: basket_id
    items: products
    category: product_category
    exclude: {department: [FUEL, MISCELLANEOUS, COUPON]}
    min_users: 5
    horizon_days: 28
  pipeline: {k: 10, candidates: 40, user_neighbours: 20, ranker_windows: 2, ranker_trees: 60}
  train: {}
  tune: {method: tpe, n_trials: 2, folds: 1}
  evaluate: {windows: WINDOWS, resamples: 50}
  gate: {resamples: 100}

redeem:
  question: Will this household redeem a coupon in the next four weeks?
  features:
    entity: household_id
    horizon_days: 28
    cutoffs: {first: "FIRST", every_days: 14}
    population: {table: transactions, within_days: 56}
    target: {table: coupon_redemptions, function: any}
    windows_days: [14, 28]
    aggregates:
      - {name: redemptions, table: coupon_redemptions}
      - {name: since_redemption, table: coupon_redemptions, function: days_since_last}
      - {name: coupon_lines, table: transactions, where: coupon_disc > 0}
      - {name: spend, table: transactions, column: sales_value, function: sum}
      - {name: baskets, table: transactions, column: basket_id, function: n_unique}
    attributes:
      - {table: demographics, columns: [income]}
  pipeline: {}
  train: {}
  tune: {method: tpe, n_trials: 3, folds: 1}
  evaluate: {windows: WINDOWS, resamples: 100, slices: [baskets_28d]}
  gate: {resamples: 100}

spend:
  question: How much will this household spend in the next four weeks?
  features:
    entity: household_id
    horizon_days: 28
    cutoffs: {first: "FIRST", every_days: 14}
    population: {table: transactions, within_days: 56}
    target: {table: transactions, function: sum, column: sales_value}
    windows_days: [28, 56]
    aggregates:
      - {name: spend, table: transactions, column: sales_value, function: sum}
      - {name: baskets, table: transactions, column: basket_id, function: n_unique}
      - {name: recency, table: transactions, function: days_since_last}
  pipeline: {}
  train: {}
  tune: {method: random, n_trials: 3, folds: 1}
  evaluate: {windows: WINDOWS, resamples: 100}
  gate: {resamples: 100}

segments:
  question: What kinds of households shop here?
  features:
    entity: household_id
    horizon_days: 28
    cutoffs: {first: "FIRST", every_days: 28}
    population: {table: transactions, within_days: 56}
    windows_days: [56]
    aggregates:
      - {name: recency, table: transactions, function: days_since_last}
      - {name: baskets, table: transactions, column: basket_id, function: n_unique}
      - {name: spend, table: transactions, column: sales_value, function: sum}
    ratios:
      - {name: basket_value, numerator: spend_56d, denominator: baskets_56d}
    keep: [baskets_56d, spend_56d, basket_value]
  pipeline: {log: true}
  tune: {method: grid, n_trials: 3, folds: 1}
  train: {history_days: 28}
  evaluate: {windows: WINDOWS, resamples: 50}
  gate: {resamples: 100}
"""
