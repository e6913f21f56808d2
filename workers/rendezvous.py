"""Where the ranks of one placement meet, and which interface their sockets use."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed has it, but not for mypy

LOOPBACK = "127.0.0.1"
# What gloo and NCCL get where all ranks are on one node. The data between GPUs does not go through
# these sockets.
GLOO = "GLOO_SOCKET_IFNAME"
ON_LOOPBACK: Mapping[str, str] = {GLOO: "lo", "NCCL_SOCKET_IFNAME": "lo"}


def open_store(host: str) -> tuple[Store, int]:
    """Open the store on a free port of `host`, an address of this machine. Returns it and the port.

    torch would listen on every interface. It has no authentication: whoever reaches the port can
    read and set what is in the store.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = int(listener.getsockname()[1])
        return TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # the store closes it
        ), port


def join(address: tuple[str, int]) -> Store:
    """The store that another rank has opened at (host, port)."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(*address, is_master=False)


def use_interface(host: str, own: str | None) -> None:
    """Have gloo and NCCL use loopback where the ranks meet there; else have gloo use the interface
    of `own`, the address by which Ray knows this node. Left to itself it takes what the host's name
    resolves to, which is loopback on many machines. NCCL may use several
    interfaces, or a faster one, and chooses itself. A setting that is there already is kept."""
    interface = interface_of(own)
    over_network = {GLOO: interface} if interface else {}
    for name, value in (ON_LOOPBACK if host == LOOPBACK else over_network).items():
        os.environ.setdefault(name, value)


def interface_of(address: str | None) -> str | None:
    """The network interface of this machine that has an address; None where none has."""
    import psutil  # loaded only where ranks meet

    interfaces = psutil.net_if_addrs().items()
    found = (name for name, own in interfaces if address in [one.address for one in own])
    return next(found, None)
