"""Training reads the purchases that servers received: from the event log through ingest and validate to the features."""

from datetime import timedelta
from pathlib import Path

import polars as pl

from evergreen.flows import settings
from evergreen.flows.operations import event_snapshots
from evergreen.serving.event_log import Event
from evergreen.tasks import features, ingest, validate
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data.snapshot import sources_changed
from evergreen.tasks.problems.recommender.user_histories import Histories
from tests import ordered_shop


def test_a_purchase_of_the_server_is_in_the_next_features(tmp_path: Path):
    place = Layout(ordered_shop.project(tmp_path / "shop", users=12))
    params = loading.load(place.params)

    def build() -> pl.DataFrame:
        event_snapshots.update(place, params)
        for step in (ingest.run, validate.run):
            step(params, None, place)
        features.run(params, "next", place)
        return pl.read_parquet(place.features("next") / "lines.parquet")

    before = build()
    assert not place.events("next").exists()
    assert not sources_changed(params, place)
    day = before["day"].max()
    settings.events(place).append("next", [Event("a", "customer 0003", "staple 1", "web 1", day, 1.0, None)])
    assert not sources_changed(params, place)
    event_snapshots.update(place, params)
    assert sources_changed(params, place)
    after = build()
    assert after.height == before.height + 1
    assert after.filter(pl.col("basket") == "web 1").select("user", "item").rows() == [("customer 0003", "staple 1")]
    assert not sources_changed(params, place)
    assert len(Histories.of(after)) == after.height

    written = place.events("next").stat().st_mtime_ns
    event_snapshots.update(place, params)
    assert place.events("next").stat().st_mtime_ns == written
    whole = place.events("next").read_bytes()
    place.events("next").write_bytes(whole[:-100])  # as a disk that lost its end
    event_snapshots.update(place, params)
    assert place.events("next").read_bytes() == whole


def test_purchases_after_a_fixed_last_day_stay_out(tmp_path: Path):
    place = Layout(ordered_shop.project(tmp_path / "shop", users=12))
    text = place.params.read_text().replace("seed: 3", 'seed: 3, as_of: "2024-03-01"')
    place.params.write_text(text)
    params = loading.load(place.params)
    day = params.project.as_of
    assert day is not None
    events = [Event(str(late), "customer 0003", "staple 1", f"web {late}", day + timedelta(late), 1.0, None) for late in (0, 1)]
    settings.events(place).append("next", events)
    event_snapshots.update(place, params)
    ingest.run(params, None, place)
    assert pl.read_parquet(place.raw("events@next"), glob=False)["basket"].to_list() == ["web 0"]
