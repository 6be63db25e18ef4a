"""A shop without dates, made up: who ordered what in which of his orders, with planted answers.

- **taste**: a user buys goods of one of six groups only, but for a few staples that everybody takes now and then.
- **favourites**: most lines are one of a user's six favourites, and after every second order he swaps one of them for another
  good of his group and never comes back to it: what was bought often long ago is not what comes next.
"""

from pathlib import Path

import numpy as np
import polars as pl

GROUPS, PER_GROUP, STAPLES, FAVOURITES = 6, 20, 5, 6


def make(users: int = 200, seed: int = 0) -> pl.DataFrame:
    """One row per line of an order: customer (text), order_id, order_number (1, 2, … per customer), product (text).

    `order_id` grows in the order in which the whole shop took its orders. The same arguments give the same rows.
    """
    draw = np.random.default_rng(seed)
    rows = [row for user in range(users) for row in _orders(draw, user)]
    lines = pl.DataFrame(rows, schema=["customer", "order_number", "product", "turn"], orient="row")
    numbered = lines.with_columns(order_id=pl.struct("turn", "customer").rank("dense").cast(pl.Int64) + 5000)
    shuffled = numbered.select("order_id", "customer", "order_number", "product").sample(fraction=1, shuffle=True, seed=seed)
    return shuffled.unique(maintain_order=True)


def group(product: str) -> int:
    """The group of a good; -1 for a staple."""
    return int(product[1]) if product.startswith("g") else -1


def _orders(draw: np.random.Generator, user: int) -> list[tuple[str, int, str, float]]:
    own = [f"g{user % GROUPS} no {each:02d}" for each in range(PER_GROUP)]
    likes = [str(each) for each in draw.choice(own, FAVOURITES, replace=False)]
    rows, dropped, turn = [], set(), float(draw.uniform(0, 10))
    for number in range(1, int(draw.integers(5, 18)) + 1):
        turn += float(draw.exponential(3))
        for kind in draw.random(int(draw.integers(3, 8))):
            choice = likes if kind < 0.75 else own if kind < 0.9 else [f"staple {each}" for each in range(STAPLES)]
            rows.append((f"customer {user:04d}", number, str(draw.choice(choice)), turn))
        if number % 2 == 0:
            dropped.add(likes.pop(0))
            likes.append(str(draw.choice(sorted(set(own) - set(likes) - dropped) or own)))
    return rows


def project(folder: Path, users: int = 200) -> Path:
    """A whole project in `folder`: orders.csv and params.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    make(users).write_csv(folder / "orders.csv")
    (folder / "params.yaml").write_text(PARAMS)
    return folder


PARAMS = """\
project: {name: orders, seed: 3}

problems: {next: recommendation}

ingest:
  orders: {csv: orders.csv}

validate:
  orders: {unique: [customer, order_id, product]}

next:
  question: What will this customer put into the next order?
  features: {table: orders, order: order_number, user: customer, item: product, basket: order_id, min_users: 2}
  pipeline: {ranker_users: 200}
  tune: {n_trials: 3, folds: 1}
  train: {}
  evaluate: {windows: 1, resamples: 60, slices: [visits]}
  gate: {}
"""
