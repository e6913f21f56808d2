"""Which card a name means, and what is known of it."""

from dataclasses import astuple

import pytest

from orchestrator.node import datasheet


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA H200", 4800),
        ("NVIDIA H200 NVL", 4800),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA H100 80GB HBM3", 3352),
        ("NVIDIA H100 PCIe", 2039),
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA L40S", 864),
        ("NVIDIA RTX 6000 Ada Generation", 960),
        ("NVIDIA B200", 7700),
        ("NVIDIA GB200", 8000),
        ("NVIDIA L4", 300),
        ("NVIDIA H20", 4022),
        ("NVIDIA H20-3e", 4800),
        ("NVIDIA H800", 3352),
        ("AMD Instinct MI300X", 5325),
        ("NVIDIA GeForce RTX 5090", 1792),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 1792),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1597),
        ("nvidia h100 80gb hbm3", 3352),
        ("Tesla T4", None),
        ("cpu", None),
        (None, None),
    ],
)
def test_a_card_is_known_by_its_name(name, gigabytes):
    found = datasheet.ceilings(name)
    assert (found and found.hbm) == (gigabytes and gigabytes * 1e9)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA L40",  # neither L4 nor L40S
        "NVIDIA L20",
        "NVIDIA GB300",
        "NVIDIA B300",
        "NVIDIA H800 PCIe",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX 6000",
        "AMD Instinct MI308X",
    ],
)
def test_a_card_with_nearly_the_same_name_is_not_taken_for_it(name):
    assert datasheet.ceilings(name) is None


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA B200", 2250.0),  # the sheet has 4.5 PFLOPS, with sparsity
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_figures_are_dense(name, bf16):
    rates = datasheet.ceilings(name).rates("bfloat16")
    assert rates.flops == pytest.approx(bf16 * 1e12)


def test_what_no_source_gives_is_unknown_and_no_zero():
    server = datasheet.sheet("NVIDIA RTX PRO 6000 Blackwell Server Edition")
    assert server.bf16 is server.fp8 is None
    ceilings = datasheet.ceilings("NVIDIA RTX PRO 6000 Blackwell Server Edition")
    assert ceilings.rates("bfloat16") is None
    assert ceilings.rates("float32").flops == 120e12
    assert set(astuple(datasheet.sheet("NVIDIA H800 PCIe"))) == {None}


def test_every_rate_of_a_sheet_is_above_zero():
    for one in datasheet.SHEETS.values():
        assert all(rate is None or rate > 0 for rate in (one.hbm, one.bf16, one.fp8, one.fp32))


def test_caches_are_those_between_the_memory_and_the_multiprocessors():
    assert datasheet.ceilings("AMD Instinct MI300X").cache_bytes == (256 + 32) << 20
    assert datasheet.ceilings("NVIDIA B200").cache_bytes == 253 << 19


def test_an_entry_has_the_words_that_name_the_card():
    assert datasheet.entry("nvidia h100 pcie")[0] == "H100 PCIe"
    assert datasheet.entry("NVIDIA RTX 6000 Ada Generation")[0] == "RTX 6000 Ada"
    assert datasheet.entry("Tesla T4") is None


def test_memory_is_of_binary_gigabytes_and_rates_of_links_are_one_way():
    ada, hopper = datasheet.sheet("NVIDIA L40S"), datasheet.sheet("NVIDIA H200")
    assert ada.memory_bytes == 48 << 30
    assert (ada.link, ada.host_link) == (32e9, 32e9)
    assert (hopper.link, hopper.host_link) == (450e9, 64e9)
    unknown = datasheet.sheet("NVIDIA H800 PCIe")
    assert unknown.memory_bytes is unknown.link is unknown.host_link is None
