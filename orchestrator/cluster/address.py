"""Which Ray cluster a command is for. Imports no Ray."""

from __future__ import annotations

import os
from typing import TypeGuard
from urllib.parse import urlsplit

from orchestrator.cluster import ray_private
from orchestrator.errors import UserError

# Of the address of a Jobs API, the first that is set; Ray's own order.
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CLIENT_PORT = 10001  # of an address with CLIENT_PREFIX that names none


def address_of(asked: str | None) -> str | None:
    """The address of the cluster to join: the one asked for, else RAY_ADDRESS. None: no cluster is
    joined; a run starts a local Ray."""
    return asked or os.environ.get("RAY_ADDRESS") or None


def is_jobs_address(address: str | None) -> TypeGuard[str]:
    """Whether it is that of a Jobs API, so that the driver runs on the cluster."""
    return address is not None and address.startswith(("http://", "https://"))


def host_and_port(address: str) -> tuple[str, int]:
    """The TCP endpoint behind "host:port", "ray://host:port" or "auto", which is the cluster whose
    head runs on this machine. Raises UserError where there is none."""
    if address == "auto":
        address = _running_here()
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host = parts.hostname
        is_client = f"{parts.scheme}://" == ray_private.CLIENT_PREFIX
        port = parts.port or (CLIENT_PORT if is_client else None)
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(
            f"'{address}' is no Ray address; write host:port, ray://host:port, http://host:8265 or "
            "auto"
        )
    return host, port


def _running_here() -> str:
    address = ray_private.address_of_head_here()
    if address is None:
        raise UserError(
            "no Ray cluster runs on this machine for --address auto; start one, or leave "
            "--address out"
        )
    return address
