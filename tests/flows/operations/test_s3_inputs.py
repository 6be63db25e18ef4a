"""Files to score, to send and to begin with may lie in S3; a store that fails is one line there as well."""

import io
from collections.abc import Callable
from datetime import date
from pathlib import Path

import httpx
import polars as pl
import pytest
import yaml

from evergreen.flows.cli import common, refresh, score
from evergreen.flows.operations import init_project, scheduled_scoring
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ParamsError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data import s3_files
from evergreen.tasks.onboarding.options import InitOptions
from tests import s3 as store
from tests.flows.operations.test_scheduled_scoring import logged, rows, run, schedule
from tests.projects import Deployed
from tests.tasks.data.test_s3_files import free_port
from tests.tasks.problems.tabular.test_tabular_kind import houses

INCOMING = {"files": "s3://shop/incoming/**/*.csv"}


@pytest.fixture
def layout(deployed: Deployed, tmp_path: Path) -> Layout:
    return deployed(tmp_path / "mill", ("dear",))


def put(endpoint: str, key: str, frame: pl.DataFrame) -> None:
    file = io.BytesIO()
    frame.write_csv(file)
    store.client(endpoint).put_object(Bucket=store.BUCKET, Key=key, Body=file.getvalue())


def test_scheduled_scoring_reads_new_and_changed_objects_once(s3: str, layout: Layout):
    schedule(layout, INCOMING)
    put(s3, "incoming/monday.csv", rows(0))
    put(s3, "incoming/week/tuesday.csv", rows(10))
    first = run(layout)
    assert first.scored == {
        "monday.csv": "data/scores/dear/monday.csv",
        "week/tuesday.csv": "data/scores/dear/week/tuesday.csv",
    }
    assert logged(layout) == first.rows == 20
    assert not (layout.var / "scheduled_scoring" / "dear" / "fetched").exists()
    put(s3, "incoming/monday.csv", rows(20))
    put(s3, "incoming/week/wrong.csv", pl.DataFrame({"nothing": [1]}))
    second = run(layout)
    assert second.scored == {"monday.csv": "data/scores/dear/monday.2.csv"}
    assert list(second.set_aside) == ["week/wrong.csv"]
    assert second.known == 1
    assert run(layout).scored == {}


def test_a_file_in_s3_is_scored_as_a_local_one(s3: str, layout: Layout, tmp_path: Path):
    put(s3, "in/rows.csv", rows(0))
    rows(0).write_csv(tmp_path / "rows.csv")
    given = {"root": layout.root, "as_json": True, "no_ledger": True}
    for data, out in (("s3://shop/in/rows.csv", "a.csv"), (str(tmp_path / "rows.csv"), "b.csv")):
        score.score("dear", data, tmp_path / out, **given)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with pytest.raises(ParamsError, match=r"--data s3://shop/in/rows\.csv: needs --out FILE"):
        score.score("dear", "s3://shop/in/rows.csv", **given)


def begin(folder: Path, data: str) -> init_project.Started:
    folder.mkdir(exist_ok=True)
    asked = InitOptions("dear", None, None, None, ())
    return init_project.run("dear", data, None, asked, folder, folder, date.today())


def test_a_project_begins_with_an_object_and_dvc_sees_it_change(s3: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    put(s3, "tables/houses.csv", houses(300))
    root = tmp_path / "new shop"
    begin(root, "s3://shop/tables/houses.csv")
    assert loading.load(root / "params.yaml").ingest["dear"].csv == "s3://shop/tables/houses.csv"
    refresh.refresh(root=root, as_json=False)
    deps = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["ingest"]["deps"]
    assert "sources.lock" in deps
    before = read_json(root / "sources.lock")
    put(s3, "tables/houses.csv", houses(301))
    refresh.refresh(root=root, as_json=False)
    assert read_json(root / "sources.lock") != before
    assert "dvc repro reads the sources again" in capsys.readouterr().err


def test_a_store_that_is_gone_keeps_what_was_known_of_its_objects(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    put(s3, "tables/houses.csv", houses(300))
    begin(tmp_path, "s3://shop/tables/houses.csv")
    refresh.refresh(root=tmp_path, as_json=True)
    before = (tmp_path / "sources.lock").read_bytes()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    refresh.refresh(root=tmp_path, as_json=True)
    assert (tmp_path / "sources.lock").read_bytes() == before
    assert "sources.lock keeps the last known state of dear." in caplog.text


# What fails


def read_schedule(layout: Layout) -> None:
    schedule(layout, INCOMING)
    scheduled_scoring.run(layout, loading.load(layout.params), "dear")


def read_option(layout: Layout) -> None:
    with common.local_file("s3://shop/incoming/a.csv"):
        pass


def read_first(layout: Layout) -> None:
    begin(layout.root.parent / "other", "s3://shop/incoming/a.csv")


READERS = {
    "dear.schedule.input.files = s3://shop/incoming/": read_schedule,
    "--data = s3://shop/incoming/a.csv": read_option,
    "--data = s3://shop/incoming/a.csv: ": read_first,
}


@pytest.mark.parametrize(("begins", "reader"), READERS.items())
def test_wrong_keys_a_dead_and_a_silent_store_and_a_missing_object_are_one_line_each(
    s3: str, layout: Layout, monkeypatch: pytest.MonkeyPatch, begins: str, reader: Callable[[Layout], None]
):
    monkeypatch.setattr(s3_files, "READ_SECONDS", 0.3)

    def said(error: type[Exception]) -> str:
        with pytest.raises(error) as raised:
            reader(layout)
        text = str(raised.value)
        assert text.startswith(begins)
        assert "\n" not in text
        return text

    assert "no such object" in said(SourceError)
    put(s3, "incoming/a.csv", rows(0))
    httpx.post(f"{s3}/moto-api/reset-auth", content=b"0")
    try:
        assert "refuses the keys" in said(SourceError)
    finally:
        httpx.post(f"{s3}/moto-api/reset-auth", content=b"inf")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "does not answer" in said(UnavailableError)
    with store.answering(0, b"", "silent") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "does not answer" in said(UnavailableError)


def test_a_file_of_another_kind_is_named(s3: str, tmp_path: Path):
    with pytest.raises(SourceError, match=r"s3://shop/a\.png: unknown file type; Evergreen reads"):
        begin(tmp_path, "s3://shop/a.png")
