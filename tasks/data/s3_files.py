"""Files of a source in an S3-compatible store, copied beside the other staged files. The one home of boto3.

Address and keys come from the standard variables: AWS_ENDPOINT_URL (a store other than AWS), AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_PROFILE, AWS_CA_BUNDLE.
"""

# pyright: reportMissingTypeStubs=false

import difflib
import logging
import os
import re
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from evergreen.tasks.config.data import SUFFIXES
from evergreen.tasks.core.errors import SourceError, UnavailableError

log = logging.getLogger(__name__)

SCHEME = "s3://"
CONNECT_SECONDS = 5
"""For a connection to the store; two attempts."""
READ_SECONDS = 20
"""Without a byte; two attempts for a request, one within a file."""
RATE_SECONDS = 60
MIN_BYTES = 100_000
"""A file of which fewer bytes arrive within RATE_SECONDS ends with an error."""
PART_BYTES = 2**20
REPORT_BYTES = 10**8
"""The log says how much of a file has arrived each time that so much has."""
KEYS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and what they may do"
BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
REFUSED = {"AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "403"}


class Object(NamedTuple):
    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes with the content."""


def is_s3(pattern: str) -> bool:
    return pattern.startswith(SCHEME)


def states(name: str, kind: str, address: str) -> list[list[str | int]]:
    """Address, bytes and ETag of each object of the address; see `find`."""
    bucket, found = find(f"ingest.{name}.{kind}", kind, address)
    return [[f"{SCHEME}{bucket}/{each.key}", each.size, each.etag] for each in found]


def find(label: str, kind: str, address: str) -> tuple[str, list[Object]]:
    """The bucket and the objects of an address, in the order of their keys: one key, a glob, or all files of the kind in a
    folder. `label`: what names the address, for messages. Raises SourceError where there is none, and what `copy` raises.
    """
    bucket, key = _parts(label, kind, address)
    with _naming(label, address):
        return bucket, _find(_client(), label, kind, bucket, key)


def fetch(label: str, addresses: Sequence[str], folder: Path) -> list[Path]:
    """Copy objects into a folder, in this order. Raises what `find` and `copy` raise."""
    folder.mkdir(exist_ok=True)
    copies = [folder / f"{number:06d}-{PurePosixPath(each).name}" for number, each in enumerate(addresses)]
    for address, to in zip(addresses, copies, strict=True):
        copy(label, address, to)
    return copies


def copy(label: str, address: str, to: Path) -> None:
    """Copy the object with this key to a file.

    Raises SourceError where it is not there or the keys are refused, UnavailableError where the store does not answer or falls
    silent.
    """
    bucket, key = _parts(label, "csv", address)
    with _naming(label, address):
        client = _client()
        if _head(client, bucket, key) is None:
            raise SourceError(f"{label} = {address}: no such object{_similar(client, bucket, key)}")
        _copy(client, label, bucket, key, to)


def _parts(label: str, kind: str, address: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,255}", bucket) or not key:
        raise SourceError(f"{label} = {address}: needs a bucket and a key, for example s3://bucket/folder/file.{kind}")
    return bucket, key


def _find(client: Any, label: str, kind: str, bucket: str, key: str) -> list[Object]:
    """The objects of an address, at least one."""
    if not re.search(r"[*?\[]", key) and not key.endswith("/"):
        one = _head(client, bucket, key)
        found = [one] if one else _list(client, bucket, f"{key}/", rf"{re.escape(key)}/[^/]*{_suffix(kind)}")
    elif key.endswith("/"):
        found = _list(client, bucket, key, rf"{re.escape(key)}[^/]*{_suffix(kind)}")
    else:
        found = _list(client, bucket, re.split(r"[*?\[]", key)[0], _expression(key))
    if found:
        return found
    raise SourceError(f"{label} = {SCHEME}{bucket}/{key}: no such object{_similar(client, bucket, key)}")


def _suffix(kind: str) -> str:
    """A regular expression."""
    return f"({'|'.join(map(re.escape, SUFFIXES[kind]))})"


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise SourceError("reading s3:// addresses needs the extra s3: pip install 'evergreen[s3]'") from None
    options = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 2, "mode": "standard"},
        s3={"addressing_style": "path"} if _endpoint() else None,
        request_checksum_calculation="when_required",  # stores other than AWS may not know them
        response_checksum_validation="when_required",
    )
    session: Any = boto3.Session()  # a new one: keys may have changed in a process that schedules
    return session.client("s3", config=options, region_name=os.environ.get("AWS_REGION") or None)


def _head(client: Any, bucket: str, key: str) -> Object | None:
    from botocore.exceptions import ClientError

    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return Object(key, found["ContentLength"], found["ETag"].strip('"'))


def _list(client: Any, bucket: str, prefix: str, expression: str) -> list[Object]:
    """The objects whose whole key fits, sorted by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    listed = (each for page in pages for each in page.get("Contents", ()))
    found = [
        Object(each["Key"], each["Size"], each["ETag"].strip('"')) for each in listed if re.fullmatch(expression, each["Key"])
    ]
    return sorted(found)


def _expression(pattern: str) -> str:
    """The regular expression of a glob, as for local files: * and ? stay within a folder, ** does not."""
    marks = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(marks.get(each) or (each.replace("[!", "[^") if each.startswith("[") else re.escape(each)) for each in parts)


def _similar(client: Any, bucket: str, key: str) -> str:
    folder = re.split(r"[*?\[]", key)[0].rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=200)
    there = [each["Key"].removeprefix(prefix) for each in listed.get("Contents", ())]
    near = difflib.get_close_matches(PurePosixPath(key).name, there, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; s3://{bucket}/{prefix} has {', '.join(there[:8]) or 'no objects'}"


def _copy(client: Any, label: str, bucket: str, key: str, to: Path) -> None:
    """Raises UnavailableError where the file is cut short, or arrives too slowly."""
    answer = client.get_object(Bucket=bucket, Key=key)
    stream = answer["Body"]._raw_stream  # its read waits for all bytes of a part, and so for ever where one arrives a second
    size, arrived, said, since, before = answer["ContentLength"], 0, 0, time.monotonic(), 0
    with to.open("wb") as file:
        while part := stream.read1(PART_BYTES, decode_content=False):
            file.write(part)
            arrived += len(part)
            if arrived - said >= REPORT_BYTES:
                said = arrived
                log.info("%s: %s of %s MB", label, f"{arrived / 1e6:,.0f}", f"{size / 1e6:,.0f}")
            if time.monotonic() - since > RATE_SECONDS:
                if arrived - before < MIN_BYTES:
                    raise UnavailableError(_silent(f"{arrived - before:,} bytes arrived within {RATE_SECONDS} s"))
                since, before = time.monotonic(), arrived
    if arrived != size:
        raise UnavailableError(_silent(f"it ended after {arrived:,} of {size:,} bytes"))


@contextmanager
def _naming(label: str, address: str) -> Generator[None]:
    """Turn an error of the store into one line that begins with `label`."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
        from urllib3.exceptions import HTTPError
    except ImportError:
        yield  # _client says so
        return
    where = f"{label} = {address}"
    try:
        yield
    except UnavailableError as error:
        raise UnavailableError(f"{where}: {error}") from None
    except ClientError as error:
        raise _refusal(where, error) from None
    except (ConnectionError, HTTPClientError, HTTPError) as error:
        raise UnavailableError(f"{where}: {_silent(_first_line(error))}") from None
    except (BotoCoreError, ValueError) as error:
        raise SourceError(f"{where}: {_first_line(error)}. {KEYS}, and AWS_ENDPOINT_URL.") from None


def _refusal(where: str, error: Any) -> SourceError:
    code = _code(error)
    said = f"{code}: {error.response.get('Error', {}).get('Message', '')}".strip(": ")
    if code in BUSY:
        return UnavailableError(f"{where}: {_silent(said)}")
    if code in REFUSED:
        return SourceError(f"{where}: {_store()} refuses the keys: {said}. {KEYS}.")
    if code == "NoSuchBucket":
        return SourceError(f"{where}: {_store()} has no such bucket. Correct the address, or AWS_ENDPOINT_URL.")
    if code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed"):
        return SourceError(f"{where}: the bucket is in another region: {said}. Set AWS_REGION.")
    return SourceError(f"{where}: {_store()} says {said}. Correct the address, or AWS_ENDPOINT_URL.")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _silent(said: str) -> str:
    return f"{_store()} does not answer: {said}. Start it, or correct AWS_ENDPOINT_URL."


def _store() -> str:
    return _endpoint() or "AWS"


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
