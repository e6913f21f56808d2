"""An object store, through `pyarrow.fs`: objects that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import UserError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # those of AWS's own tools
CONNECT_S, ANSWER_S, ATTEMPTS = 5.0, 30.0, 3
AT_ONCE = 8  # requests in flight


@dataclass(frozen=True)
class Objects:
    """The objects below a URI, by their names behind it."""

    uri: str
    files: Any  # pyarrow.fs.FileSystem
    root: str

    def below(self, name: str) -> Objects:
        """Those of a folder."""
        return Objects(f"{self.uri}/{name}", self.files, f"{self.root}/{name}") if name else self

    def names(self, folder: str = "") -> list[str]:
        """All of them, or those in a folder, in order."""
        from pyarrow.fs import FileSelector, FileType

        where = f"{self.root}/{folder}".rstrip("/")
        selector = FileSelector(where, allow_not_found=True, recursive=True)
        found = self.files.get_file_info(selector)
        begin = len(self.root) + 1
        return sorted(one.path[begin:] for one in found if one.type == FileType.File)

    def get(self, name: str) -> bytes | None:
        """The content of one, None where there is none."""
        try:
            with self.files.open_input_stream(f"{self.root}/{name}", compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Make or replace one."""
        with self.files.open_output_stream(f"{self.root}/{name}", compression=None) as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Let there be none."""
        with contextlib.suppress(FileNotFoundError):
            self.files.delete_file(f"{self.root}/{name}")


def connect(uri: str) -> Objects:
    """The objects below a URI. Raises UserError where its store does not answer, or has no such
    bucket."""
    from pyarrow.fs import FileType

    scheme, _, path = uri.partition("://")
    with reaching(uri):
        files = _store(scheme)
        bucket = path.partition("/")[0]
        if files.get_file_info(bucket).type == FileType.NotFound:
            raise UserError(
                f"there is no bucket '{bucket}' for {uri}; make it, or mend the URI or the endpoint"
            )
    return Objects(uri, files, path)


def _store(scheme: str) -> Any:
    """The client of a store; who asks, and the region, it finds in the environment by itself."""
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=ANSWER_S))
    endpoint = next(filter(None, map(os.environ.get, ENDPOINTS)), "")
    where = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    return fs.S3FileSystem(
        endpoint_override=where.netloc or None,
        scheme=where.scheme,
        allow_delayed_open=True,  # one request a part, where it is not a large one
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Say in a line why a store cannot be reached."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{uri} cannot be reached: {reason(error)}; look at bucket, endpoint "
            "(AWS_ENDPOINT_URL), region and credentials"
        ) from error


def reason(error: OSError) -> str:
    """What a store said, in one line."""
    return " ".join(str(error).split())
