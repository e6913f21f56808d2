"""An S3 server of this process, for what keeps results in an object store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from existing_cluster import free_ports
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem

from orchestrator.store.objects import Objects

BUCKET = "results"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Its endpoint. It has an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    (port,) = free_ports(1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{port}"
        client(endpoint).create_dir(BUCKET)
        yield endpoint
    finally:
        server.stop()


def client(endpoint: str) -> S3FileSystem:
    """A client that needs no environment."""
    return S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        endpoint_override=endpoint.removeprefix("http://"),
        scheme="http",
        allow_bucket_creation=True,
    )


def environment(endpoint: str) -> dict[str, str]:
    """By which a user's client finds the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def folder(endpoint: str, name: str) -> Objects:
    """The objects below a name in the bucket."""
    return Objects(f"s3://{BUCKET}/{name}", client(endpoint), f"{BUCKET}/{name}")
