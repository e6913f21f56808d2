"""Which card a name means, and what is known of it."""

from dataclasses import astuple, replace

import pytest

from orchestrator.errors import UserError
from orchestrator.node import datasheet
from orchestrator.predict.hardware import Attainable, find, of_sheet


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
        "NVIDIA H20 PCIe",
        "NVIDIA A100 PCIe",  # of 40 or of 80 GB?
        "A100 40GB",  # PCIe or SXM?
        "a100-40gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100 96GB HBM3",
        "H20 141GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 NVL MIG 1g.12gb",
        "NVIDIA B200 MIG 1g.23gb",
        "H100 and B200",
        "H200, H100 PCIe",
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
    assert set(astuple(replace(datasheet.sheet("NVIDIA H800 PCIe"), node=None))) == {None}


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


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h200", "H200"),
        ("NVIDIA H200", "H200"),
        ("h100 pcie", "H100 PCIe"),
        ("h100-pcie", "H100 PCIe"),
        ("h100pcie", "H100 PCIe"),
        ("rtx6000ada", "RTX 6000 Ada"),
        ("a100_sxm4_40gb", "A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("h20-3e", "H20-3e"),
    ],
)
def test_one_rule_finds_a_card_by_what_people_write_and_by_what_drivers_say(written, name):
    assert datasheet.name_of(written) == find(written)[0] == name


def test_an_unknown_card_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no data sheet of 'h20 pcie' is known; did you mean h"):
        find("h20 pcie")


def test_a_card_whose_rates_are_not_known_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="of RTX 5090 D is known; use another --gpu"):
        of_sheet("rtx 5090 d", Attainable(0.9, 0.7, 0.8, 0.9), None)


def test_what_programs_see_of_a_memory_is_less_than_makers_write():
    # GDDR6 with ECC on, as nvidia-smi gives it: a sixteenth is kept for the check bits
    assert datasheet.sheet("NVIDIA L40S").usable_bytes == 46068 << 20
    assert datasheet.sheet("NVIDIA L4").usable_bytes == 23034 << 20
    unsaid = datasheet.sheet("NVIDIA B200")
    assert unsaid.usable_bytes == unsaid.memory_bytes == 180 << 30
    for one in datasheet.SHEETS.values():
        if one.usable is not None:
            assert 0.93 < one.usable_bytes / one.memory_bytes < 1


def test_nvlink_joins_a_rack_a_board_or_the_cards_of_a_bridge():
    found = {name: (one.node, one.bridge) for name, one in datasheet.SHEETS.items() if one.nvlink}
    assert found["GB200"] == (72, None)
    assert found["B200"] == found["H200"] == found["A100"] == (8, None)
    assert found["H100 PCIe"] == found["H100 NVL"] == found["A100 80GB PCIe"] == (8, 2)
    assert found["H200 NVL"] == (8, 4)


def test_memory_is_of_binary_gigabytes_and_rates_of_links_are_one_way():
    ada, hopper = datasheet.sheet("NVIDIA L40S"), datasheet.sheet("NVIDIA H200")
    assert ada.memory_bytes == 48 << 30
    assert (ada.link, ada.host_link) == (32e9, 32e9)
    assert (hopper.link, hopper.host_link) == (450e9, 64e9)
    unknown = datasheet.sheet("NVIDIA H800 PCIe")
    assert unknown.memory_bytes is unknown.link is unknown.host_link is None
