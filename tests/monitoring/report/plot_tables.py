"""Tables like those that evaluate writes for each kind of problem."""

import numpy as np
import polars as pl


def plot_tables(kind: str) -> dict[str, pl.DataFrame]:
    draw, place = np.random.default_rng(3), np.linspace(0, 1, 60)

    def both(**columns: np.ndarray) -> pl.DataFrame:
        table = pl.DataFrame(columns)
        return pl.concat([table.select(pl.lit(name).alias("series"), pl.all()) for name in ("model", "baseline")])

    edges = np.linspace(-300, 300, 41)
    residuals = {"low": edges[:-1], "high": edges[1:], "share": np.histogram(draw.normal(0, 100, 900), edges)[0] / 900}
    groups = [
        {
            "cluster": group,
            "rows": 500,
            "share": 0.25,
            "feature": name,
            "mean": 10.0 * group,
            "overall": 15.0,
            "deviations": group - 1.5,
        }
        for group in range(4)
        for name in ("baskets_56d", "spend_56d", "basket_value", "recency_days")
    ]
    cluster = np.repeat([0, 1, 2, 3], 100)
    return {
        "classification": {
            "roc": both(false_positive_rate=place, true_positive_rate=place**0.2),
            "precision_recall": both(recall=place, precision=0.6 - 0.5 * place),
            "calibration": pl.DataFrame(
                {"series": "model", "predicted": place[::6] / 3, "observed": place[::6] / 3.1, "rows": 100}
            ),
            "gain": both(share_of_rows=place, share_found=place**0.3, lift=1 + place),
            "scores": pl.DataFrame(
                {
                    "series": "model",
                    "low": place[:-1],
                    "high": place[1:],
                    "share_of_negatives": 0.03,
                    "share_of_positives": place[:-1] / 30,
                }
            ),
            "confusion": pl.DataFrame(
                {"label": ["0", "0", "1", "1"], "predicted": ["0", "1", "0", "1"], "rows": [5012, 1321, 71, 220]}
            ),
        },
        "regression": {
            "predicted_actual": pl.DataFrame({"predicted": place * 900, "actual": place * 900 + draw.normal(0, 90, 60)}),
            "residuals": both(**residuals),
            "error_by_prediction": both(decile=np.arange(1, 11), mae=np.linspace(20, 190, 10)),
        },
        "clustering": {
            "profile": pl.DataFrame(groups),
            "projection": pl.DataFrame(
                {"cluster": cluster, "first": draw.normal(cluster, 0.5), "second": draw.normal(0, 1, 400)}
            ),
            "silhouettes": pl.DataFrame(
                {"place": np.arange(400), "cluster": cluster, "silhouette": np.tile(np.linspace(0.7, -0.1, 100), 4)}
            ),
        },
        "recommendation": {
            "ndcg_by_history": both(visits=np.arange(4, 84, 10), ndcg=np.linspace(0.2, 0.5, 8)),
            "ndcg_novel_by_history": both(visits=np.arange(4, 84, 10), ndcg_novel=np.linspace(0.07, 0.03, 8)),
            "candidates": pl.DataFrame(
                {"source": ["rebuy", "tifu_knn", "popular", "two_stage"], "ndcg": [0.39, 0.4, 0.17, 0.41]}
                | {
                    "recall": [0.09, 0.1, 0.04, 0.1],
                    "ndcg_novel": [0.0, 0.04, 0.04, 0.05],
                    "recall_novel": [0.0, 0.02, 0.02, 0.03],
                }
            ),
            "ablations": pl.DataFrame(
                {"variant": ["all sources", "without tifu_knn"], "gain": [0.0, -0.01], "low": [0.0, -0.02], "high": [0.0, 0.0]}
                | {"gain_novel": [0.0, 0.001], "low_novel": [0.0, -0.004], "high_novel": [0.0, 0.006]}
            ),
            "hidden_items": pl.DataFrame(
                {"order": ["attributes", "popularity of the category", "random"], "ndcg": [0.2, 0.1, 0.01]}
                | {"low": [0.18, 0.08, 0.0], "high": [0.22, 0.12, 0.02], "hit_rate": [0.5, 0.3, 0.1]}
                | {"users": [900, 900, 900], "items": [200, 200, 200]}
            ),
            "by_visits": both(visits=["none", "1", "2 to 4", "50 and more"], ndcg=np.linspace(0.1, 0.5, 4)).with_columns(
                low=pl.col("ndcg") - 0.03, high=pl.col("ndcg") + 0.03
            ),
            "short_histories": pl.DataFrame(
                {
                    "visits_known": ["0", "1", "all"],
                    "ndcg": [0.2, 0.3, 0.5],
                    "low": [0.18, 0.28, 0.48],
                    "high": [0.22, 0.32, 0.52],
                }
            ),
            "by_buyers": both(buyers=["none", "1 to 4", "5 to 19"], share=[0.1, 0.3, 0.6], found=[0.0, 0.01, 0.2]),
            "diversity": pl.DataFrame(
                {"series": ["all items"] * 2, "dial": [0.0, 1.0], "ndcg": [0.41, 0.3], "low": [0.4, 0.29], "high": [0.42, 0.31]}
                | {"diversity": [0.92, 1.0]}
            ),
            "lists": pl.DataFrame(
                {"series": ["model", "model", "purchases"], "measure": ["novelty", "repeats", "novelty"]}
                | {"value": [3.4, 0.94, 5.9], "low": [3.3, 0.93, 5.8], "high": [3.5, 0.95, 6.0]}
            ),
            "sources": pl.DataFrame({"source": ["rebuy", "tifu_knn", "popular"], "share": [0.7, 0.25, 0.05]}),
            "sources_novel": pl.DataFrame({"source": ["rebuy", "tifu_knn", "popular"], "share": [0.0, 0.8, 0.2]}),
            "catalogue": both(share_of_catalogue=place[1:], share_of_entries=place[1:] ** 0.2),
        },
    }[kind]
