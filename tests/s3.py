"""An S3-compatible store of a test's own, moto's server on loopback, and stores that misbehave."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

BUCKET = "shop"
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_REGION": "us-east-1"}


def environment(endpoint: str) -> dict[str, str]:
    """The variables with which programs reach it."""
    return {**KEYS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def running() -> Iterator[str]:
    """The endpoint of an empty store with one bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        httpx.post(f"{endpoint}/moto-api/reset")  # servers of a process share their objects
        client(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        server.stop()


def client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def answering(size: int, sent: bytes, then: str) -> Iterator[str]:
    """The endpoint of a store that promises each object with `size` bytes, sends some, and then "ends", is "silent", or goes
    on with a byte now and then ("trickles"). `size` 0: it never answers."""
    stop, head = (
        threading.Event(),
        f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: "a"\r\nConnection: close\r\n\r\n'.encode(),
    )

    def answer(link: socket.socket) -> None:
        with link, suppress(OSError):
            asked = link.recv(65536)
            if size:
                link.sendall(head)
            if size and asked.startswith(b"GET"):
                link.sendall(sent)
                while then == "trickles" and not stop.is_set():
                    link.sendall(b"x")
                    time.sleep(0.02)
            if not size or (then == "silent" and asked.startswith(b"GET")):
                stop.wait(60)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
