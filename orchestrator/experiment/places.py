"""Where results live: a folder, or a URI of an object store.

What is at a URI passes through a folder here, whose path has the parts of the URI after `MARK`: of
`s3://bucket/results` it ends in `MARK/s3/bucket/results`. So each tells the other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, PlainSerializer

SCHEMES = ("s3", "gs")
MARK = "shard-orchestrator-stores"


def is_uri(text: object) -> bool:
    """Whether it is written as a URI, of whatever scheme."""
    return isinstance(text, str) and "://" in text


def fault_of(path: str, takes_uris: bool) -> str | None:
    """Why a text names no file and no folder of this machine, and what to give; None where it does.
    One without a name would be the folder that the user is in, and a URI one called `s3:`."""
    if not path.strip():
        return "it is blank; name a file or a folder, the one you are in as '.'"
    if is_uri(path) and not takes_uris:
        return f"{path} is a URI; give a file or a folder of this machine"
    return None


def folder_of_uri(uri: str, root: Path | None = None) -> Path:
    """The folder of a URI: for `file://` the one it names, else the one under `root` through which
    its results pass. root: the user's cache if it is left out. Raises ValueError for a URI that is
    not understood."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(unquote(parts.path))
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"'{uri}' is no place for results; give a folder, file:///, {known}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"a {parts.scheme}:// URI has only a bucket and names here; endpoint, region and "
            "credentials come from the environment, as AWS_ENDPOINT_URL and AWS_REGION"
        )
    names = [name for name in parts.path.split("/") if name]
    if not parts.netloc or {".", ".."} & set(names):
        raise ValueError(f"'{uri}' names no bucket, or has a '.' or '..' in it; give all of it")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (root or cache).absolute().joinpath(MARK, parts.scheme, parts.netloc, *names)


def uri_of(folder: Path) -> str | None:
    """The URI whose results pass through a folder; None where that is the place itself."""
    parts = folder.parts
    if MARK not in parts:
        return None
    scheme, *names = parts[parts.index(MARK) + 1 :] or ("",)
    return f"{scheme}://{'/'.join(names)}" if names else None


def place(folder: Path) -> str:
    """What a user calls the place of the results in a folder: the URI, or its path."""
    return uri_of(folder) or str(folder)


def _as_folder(value: Any) -> Any:
    return folder_of_uri(value) if is_uri(value) else value


# A field that holds the folder, and is written as the place.
ResultDir = Annotated[
    Path, BeforeValidator(_as_folder), PlainSerializer(place, when_used="json-unless-none")
]
