"""Tables are read from an S3-compatible store as from a folder; a store that fails is one line, in bounded time."""

import gzip
import io
import socket
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from evergreen.tasks import ingest
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import s3_files
from evergreen.tasks.data.snapshot import sources_changed
from tests import s3 as store

SALES = b"id,price\n1,1.5\n2,2.5\n"


def put(endpoint: str, **content: bytes) -> None:
    """Key, with `__` for / and `_` for a dot, -> content."""
    for key, each in content.items():
        name = key.replace("__", "/").replace("_", ".")
        store.client(endpoint).put_object(Bucket=store.BUCKET, Key=name, Body=each)


def parquet(*numbers: int) -> bytes:
    file = io.BytesIO()
    pl.DataFrame({"id": numbers}).write_parquet(file)
    return file.getvalue()


def params(**source: Any) -> Params:
    return Params.model_validate({"project": {"name": "test", "as_of": "2024-12-31"}, "ingest": {"t": source}, "problems": {}})


def read(root: Path, **source: Any) -> pl.DataFrame:
    ingest.run(params(**source), None, Layout(root))
    return pl.read_parquet(Layout(root).raw("t"))


@pytest.mark.parametrize("key", ["in/sales.csv", "in/sales.csv.gz"])
def test_a_csv_file_is_read_as_a_local_one(s3: str, tmp_path: Path, key: str):
    put(s3, in__sales_csv=SALES, in__sales_csv_gz=gzip.compress(SALES))
    assert read(tmp_path, csv=f"s3://shop/{key}").to_dict(as_series=False) == {"id": [1, 2], "price": [1.5, 2.5]}


def test_json_lines_are_read(s3: str, tmp_path: Path):
    put(s3, a_jsonl=b'{"id": 7}\n{"id": 8}\n')
    assert read(tmp_path, jsonl="s3://shop/a.jsonl")["id"].to_list() == [7, 8]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("days/1.parquet", [1]),
        ("days", [1, 2]),
        ("days/", [1, 2]),
        ("days/[!1].parquet", [2]),
        ("*/?.parquet", [1, 2]),
        ("days/**/*.parquet", [1, 2, 3]),
        ("days/*/*.parquet", [3]),
    ],
)
def test_parquet_files_of_a_key_a_folder_or_a_glob_are_one_table(s3: str, tmp_path: Path, pattern: str, expected: list[int]):
    put(s3, days__1_parquet=parquet(1), days__2_parquet=parquet(2), days__more__3_parquet=parquet(3), days__note_txt=b"x")
    assert read(tmp_path, parquet=f"s3://shop/{pattern}")["id"].to_list() == expected


def test_an_object_that_changed_is_noticed_and_a_store_that_is_gone_is_not_waited_for(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    known, place = params(csv="s3://shop/t.csv"), Layout(tmp_path)
    put(s3, t_csv=b"a\n1\n")
    assert not sources_changed(known, place)
    ingest.run(known, None, place)
    assert not sources_changed(known, place)
    put(s3, t_csv=b"a\n2\n")
    assert sources_changed(known, place)
    ingest.run(known, None, place)
    assert not sources_changed(known, place)
    put(s3, t_csv=b"a\n3\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert not sources_changed(known, place)
    assert "does not answer" in caplog.text
    assert "The tables that were read before are used." in caplog.text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# What fails


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://shop", "= s3://shop: needs a bucket and a key, for example s3://bucket/folder/file.csv"),
        ("s3://shop/in/sale.csv", r"s3://shop/in/sale.csv: no such object; did you mean sales.csv\?"),
        ("s3://shop/in/*.txt", r"no such object; s3://shop/in/ has sales.csv$"),
        ("s3://shop/out/a.csv", r"no such object; s3://shop/out/ has no objects$"),
        ("s3://shops/in/sales.csv", r"http://127.0.0.1:\d+ has no such bucket. Correct the address"),
        ("s3://a b/in/sales.csv", "= s3://a b/in/sales.csv: needs a bucket and a key"),
    ],
)
def test_a_wrong_address_is_named(s3: str, tmp_path: Path, address: str, said: str):
    put(s3, in__sales_csv=SALES)
    with pytest.raises(SourceError, match=said) as raised:
        read(tmp_path, csv=address)
    assert str(raised.value).startswith("ingest.t.csv = ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://shop/in/sales.csv", "s3://shop/in/*.csv"])
def test_wrong_keys_are_named(s3: str, tmp_path: Path, address: str):
    httpx.post(f"{s3}/moto-api/reset-auth", content=b"0")  # from now on it judges keys, and knows none
    try:
        with pytest.raises(SourceError, match=r"127.0.0.1:\d+ refuses the keys: .* Check AWS_ACCESS_KEY_ID, AWS_SECRET"):
            read(tmp_path, csv=address)
    finally:
        httpx.post(f"{s3}/moto-api/reset-auth", content=b"inf")


def test_missing_keys_are_named(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in store.KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError, match=r"Unable to locate credentials. Check AWS_ACCESS_KEY_ID"):
        read(tmp_path, csv="s3://shop/a.csv")


def test_a_dead_endpoint_is_one_line(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError, match=r"http://127.0.0.1:\d+ does not answer: .* Start it, or correct AWS_ENDPOINT"):
        read(tmp_path, csv="s3://shop/a.csv")


def test_an_endpoint_that_is_no_address_is_named(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "store:9000")
    with pytest.raises(SourceError, match=r"ingest.t.csv = s3://shop/a.csv: Invalid endpoint: store:9000.*AWS_ENDPOINT_URL"):
        read(tmp_path, csv="s3://shop/a.csv")


@pytest.mark.parametrize(
    ("size", "then", "said"),
    [
        (0, "silent", "does not answer: Read timeout"),
        (100, "silent", "does not answer: .*Read timed out"),
        (100, "ends", "does not answer: .*(ended after 9 of 100 bytes|IncompleteRead)"),
        (10**7, "trickles", r"does not answer: \d+ bytes arrived within 0.2 s"),
    ],
)
def test_a_store_that_falls_silent_is_one_line(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, then: str, said: str
):
    monkeypatch.setattr(s3_files, "READ_SECONDS", 0.5)
    monkeypatch.setattr(s3_files, "RATE_SECONDS", 0.2)
    with store.answering(size, b"id,price\n", then) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(UnavailableError, match=said) as raised:
            read(tmp_path, csv="s3://shop/a.csv")
    assert "\n" not in str(raised.value)
    assert not Layout(tmp_path).raw("t").exists()
