"""Where ranks meet: who can reach the store, and which interface gloo and NCCL get."""

from __future__ import annotations

import os

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
    rendezvous.stay_on_loopback("127.0.0.1")
    assert [os.environ[name] for name in INTERFACES] == ["lo", "lo"]


def test_an_interface_that_was_chosen_stays(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("NCCL_SOCKET_IFNAME", "eth1")
    rendezvous.stay_on_loopback("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth1"


def test_ranks_of_several_nodes_get_no_interface(unset: pytest.MonkeyPatch) -> None:
    rendezvous.stay_on_loopback("10.0.0.1")
    assert not [name for name in INTERFACES if name in os.environ]
