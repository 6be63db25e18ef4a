"""Compressed bodies are read within the limit, and responses are compressed for those who ask."""

import gzip
import zlib

import pytest

from evergreen.serving.compression import compress, decompress
from evergreen.serving.protocols import BodyTooLargeError, MalformedRequestError, UnsupportedTypeError

TEXT = b'{"size": 3.0}' * 50
ZIPPED = gzip.compress(TEXT, mtime=0)
"""Without the time, which would be in the names of tests: they are the same for each process that collects them."""
RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = RAW.compress(TEXT) + RAW.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", ZIPPED),
        (b" GZIP ", ZIPPED),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", RAW_DEFLATE),
        (b"identity", TEXT),
        (b"", TEXT),
    ],
)
def test_a_body_is_decompressed(encoding, body):
    assert decompress(body, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"\xff" * 100])
def test_an_unknown_encoding_is_unsupported(encoding):
    with pytest.raises(UnsupportedTypeError, match="must be gzip, deflate or identity"):
        decompress(TEXT, encoding, 1000)


@pytest.mark.parametrize("body", [b"", TEXT, ZIPPED[:-1], ZIPPED + b"x", gzip.compress(b"", mtime=0) * 2])
def test_what_is_not_one_complete_stream_is_malformed(body):
    with pytest.raises(MalformedRequestError, match="is not one complete gzip stream"):
        decompress(body, b"gzip", 1000)


@pytest.mark.parametrize(("encoding", "window"), [(b"gzip", 31), (b"deflate", 15), (b"deflate", -15)])
def test_a_bomb_ends_at_the_limit(encoding, window):
    writer = zlib.compressobj(9, wbits=window)
    bomb = b"".join(writer.compress(bytes(1 << 20)) for _ in range(64)) + writer.flush()
    assert len(bomb) < 100_000
    with pytest.raises(BodyTooLargeError, match=r"^$"):
        decompress(bomb, encoding, 1 << 16)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate, GZIP;q=0.5", b"gzip"),
        (b"gzip; q=0, deflate", b"deflate"),
        (b"br", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_long_response_is_compressed_for_a_client_that_accepts_it(accepted, encoding):
    body, found = compress(TEXT * 10, accepted)
    assert found == encoding
    assert (decompress(body, encoding, 10**5) if encoding else body) == TEXT * 10
    assert compress(TEXT[:100], accepted) == (TEXT[:100], None)
