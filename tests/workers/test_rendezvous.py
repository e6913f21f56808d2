"""Where ranks meet: who can reach the store, and which interface gloo and NCCL get."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from workers import rendezvous

INTERFACES = tuple(rendezvous.ON_LOOPBACK)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No interface is chosen, and none stays so after the test."""
    for name in INTERFACES:
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_store_listens_on_the_address_that_was_asked_for_and_on_no_other(host: str) -> None:
    store, port = rendezvous.open_store(host)
    found = psutil.Process().net_connections("inet")
    assert {one.laddr.ip for one in found if one.laddr.port == port} == {host}
    store.set("key", "value")
    assert rendezvous.join((host, port)).get("key") == b"value"


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        rendezvous.open_store("203.0.113.7")


def test_ranks_of_one_node_send_through_loopback(unset: pytest.MonkeyPatch) -> None:
    rendezvous.use_interface("127.0.0.1", "10.0.0.1")
    assert [os.environ[name] for name in INTERFACES] == ["lo", "lo"]


def test_an_interface_that_was_chosen_stays(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("NCCL_SOCKET_IFNAME", "eth1")
    rendezvous.use_interface("127.0.0.1", "10.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth1"


def test_ranks_of_several_nodes_send_through_the_interface_of_their_nodes_address(
    unset: pytest.MonkeyPatch,
) -> None:
    """The interface with an address of this machine that is not loopback's, or loopback's own."""
    addresses = {
        one.address: name
        for name, own in psutil.net_if_addrs().items()
        for one in own
        if one.family == socket.AF_INET
    }
    own, interface = sorted(addresses.items(), key=lambda one: one[1] == "lo")[0]
    rendezvous.use_interface("203.0.113.7", own)
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface
    assert "NCCL_SOCKET_IFNAME" not in os.environ  # it may use several, or a faster one


@pytest.mark.parametrize("own", [None, "203.0.113.8"])
def test_without_an_interface_of_that_address_none_is_chosen(
    unset: pytest.MonkeyPatch, own: str | None
) -> None:
    rendezvous.use_interface("203.0.113.7", own)
    assert not [name for name in INTERFACES if name in os.environ]
