"""Checks of the GPUs, their driver and their links."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.node import datasheet
from orchestrator.node.checks import FAIL, PASS, WARN, Check, joined, listed
from orchestrator.node.facts import Facts, GpuState
from workers.device import (
    BOARD_LIMITS,
    CLOCK_SETTINGS,
    HARDWARE_SLOWDOWN,
    POWER_CAP,
    THERMAL,
    throttle_names,
)
from workers.rows import grouped
from workers.units import format_bytes

IDLE_BYTES = 2 << 30  # a GPU that nothing uses holds less: driver and contexts
HOT_C = 80
# NVML's reasons for low clocks, by what they mean for a measurement. An idle GPU's low clock is
# no fault.
SLOWED = HARDWARE_SLOWDOWN | THERMAL
LIMITED = POWER_CAP | CLOCK_SETTINGS | BOARD_LIMITS


def no_gpus(facts: Facts) -> Check:
    """What it means that this machine has no GPU."""
    found = (
        "none: layouts run on CPU workers, which shows that they work and says nothing about GPUs"
    )
    return Check("GPUs", WARN, found, "for figures, use a node with NVIDIA GPUs and their driver")


def driver(facts: Facts) -> Check:
    """The driver supports torch's major CUDA version or a newer one."""
    gpus = [state.gpu for state in facts.gpus]
    names = joined(dict.fromkeys(gpu.name for gpu in gpus))
    needs, has = facts.torch.cuda, facts.driver_cuda
    found = f"{gpus[0].driver} (CUDA {has or 'unknown'}), {len(gpus)} x {names}"
    if needs and has and _major(needs) > _major(has):
        found = f"{found}; torch is built for CUDA {needs}"
        return Check("driver", FAIL, found, "update the driver, or use a torch for its CUDA")
    return Check("driver", PASS, found)


def nccl(facts: Facts) -> Check:
    """torch has NCCL."""
    if facts.torch.nccl:
        return Check("NCCL", PASS, facts.torch.nccl)
    return Check("NCCL", FAIL, "none in torch", "install torch for CUDA on Linux")


def peer_access(facts: Facts) -> Check:
    """Every GPU can read every other's memory. CUDA says so if it was asked, else NVML."""
    asked = facts.torch.peers or [(pair.a, pair.b, pair.p2p) for pair in facts.pairs]
    if not asked:
        return Check("P2P access", PASS, "one GPU")
    without = [f"{a}-{b}" for a, b, reaches in asked if reaches is False]
    if without:
        advice = (
            "switch ACS/IOMMU off in the BIOS, or give the virtual machine whole NVLink islands; "
            "NCCL copies through the host"
        )
        return Check("P2P access", WARN, f"not between {listed(without)}", advice)
    unknown = [f"{a}-{b}" for a, b, reaches in asked if reaches is None]
    found = f"unknown for {listed(unknown)}" if unknown else "between all GPUs"
    return Check("P2P access", PASS, found)


def nvlink(facts: Facts) -> Check:
    """Every pair has as many links as the data sheet gives one GPU, and all pairs the same."""
    pairs = grouped(facts.pairs, lambda pair: pair.nvlinks)
    widths = {links: [pair.name for pair in alike] for links, alike in pairs.items()}
    if not widths:
        return Check("NVLink", PASS, "one GPU")
    sheet = datasheet.sheet(facts.gpus[0].gpu.name)
    told = sheet.links if sheet else None
    full = max(widths) if told is None else told
    if set(widths) == {0}:
        return _without_nvlink(facts, full)
    return _of_widths(widths, full)


def _without_nvlink(facts: Facts, full: int) -> Check:
    """No pair has a link: a fault only where the data sheet gives `full` of them."""
    found = f"none; PCIe ({joined(sorted({pair.path for pair in facts.pairs}))})"
    advice = (
        "tensor parallelism will spend most of its time waiting; expect pipeline or data "
        "parallelism to win"
    )
    return Check("NVLink", WARN, found, advice) if full else Check("NVLink", PASS, found)


def _of_widths(widths: dict[int, list[str]], full: int) -> Check:
    """widths: number of links -> the pairs that have as many."""
    found = "; ".join(
        f"{width or 'no'} links between {listed(names)}"
        for width, names in sorted(widths.items(), reverse=True)
    )
    if len(widths) > 1:
        advice = "keep tensor parallelism within the pairs that have most links"
        return Check("NVLink", WARN, found, advice)
    if min(widths) < full:
        advice = "a link is down, or GPUs are bridged: nvidia-smi nvlink --status"
        return Check("NVLink", WARN, f"{found}, of {full}", advice)
    return Check("NVLink", PASS, found)


def ecc(facts: Facts) -> Check:
    """No memory errors, and the same mode on every GPU."""
    broken = [gpu.index for gpu in facts.gpus if gpu.ecc_errors]
    if broken:
        found = f"uncorrected errors on GPU {joined(broken)}"
        return Check("ECC", FAIL, found, "reset or replace it: its numbers may be wrong")
    modes = {gpu.ecc for gpu in facts.gpus}
    if len(modes) > 1:
        advice = "make them alike (nvidia-smi -e): ECC takes bandwidth"
        return Check("ECC", WARN, "on for some GPUs and off for others", advice)
    return Check(
        "ECC", PASS, {True: "on, no errors", False: "off", None: "not reported"}[modes.pop()]
    )


def clocks(facts: Facts) -> Check:
    """No clock is held down, except on an idle GPU, no power limit was lowered, and no GPU is hot
    before the work begins."""
    if slowed := _held_down(facts.gpus, SLOWED):
        advice = "look at cooling and power supply; wait until it is gone"
        return Check("clocks", FAIL, slowed, advice)
    if limited := _held_down(facts.gpus, LIMITED):
        advice = (
            "look at the power limit and locked clocks: nvidia-smi -q -d POWER,CLOCK; "
            "nvidia-smi -rac -rgc"
        )
        return Check("clocks", WARN, limited, advice)
    if lowered := "; ".join(filter(None, map(_lowered_limit, facts.gpus))):
        return Check("clocks", WARN, lowered, "set it back: sudo nvidia-smi -pl WATTS")
    hot = [gpu for gpu in facts.gpus if (gpu.temperature_c or 0) > HOT_C]
    if hot:
        found = "; ".join(f"GPU {gpu.index}: {gpu.temperature_c} C" for gpu in hot)
        return Check("clocks", WARN, found, "let it cool down first")
    limits = dict.fromkeys(f"{gpu.gpu.max_sm_clock_mhz or '?'} MHz" for gpu in facts.gpus)
    return Check("clocks", PASS, f"not held down; up to {joined(limits)}")


def persistence(facts: Facts) -> Check:
    """The driver stays loaded while nothing uses a GPU."""
    off = [gpu.index for gpu in facts.gpus if gpu.persistence is False]
    if off:
        advice = "sudo nvidia-smi -pm 1: else the first use takes seconds"
        return Check("persistence", WARN, f"off on GPU {joined(off)}", advice)
    told = any(gpu.persistence is not None for gpu in facts.gpus)
    return Check("persistence", PASS, "on" if told else "not reported")


def mig(facts: Facts) -> Check:
    """No GPU is cut into instances."""
    cut = [gpu.index for gpu in facts.gpus if gpu.mig]
    if cut:
        advice = "use whole GPUs (nvidia-smi -mig 0): instances have no peer access"
        return Check("MIG", FAIL, f"enabled on GPU {joined(cut)}", advice)
    return Check("MIG", PASS, "off")


def others(facts: Facts) -> Check:
    """Nobody else computes on the GPUs. In a container NVML hides the processes, but not the memory
    they hold."""
    busy = [gpu for gpu in facts.gpus if gpu.processes or (gpu.memory_used_bytes or 0) > IDLE_BYTES]
    if busy:
        found = "; ".join(map(_held_by, busy))
        advice = "end them, or leave these GPUs out with CUDA_VISIBLE_DEVICES"
        return Check("other processes", WARN, found, advice)
    return Check("other processes", PASS, "none on the GPUs")


GPU_CHECKS: Sequence[Callable[[Facts], Check]] = (
    driver,
    nccl,
    peer_access,
    nvlink,
    ecc,
    clocks,
    persistence,
    mig,
    others,
)


def _held_by(gpu: GpuState) -> str:
    who = f"process {joined(gpu.processes)}" if gpu.processes else "somebody"
    return f"GPU {gpu.index}: {who} holds {format_bytes(gpu.memory_used_bytes or 0)}"


def _held_down(gpus: Sequence[GpuState], mask: int) -> str:
    """The GPUs whose clocks are low for one of the reasons in `mask`; empty where there is none."""
    held = [(gpu.index, (gpu.throttle or 0) & mask) for gpu in gpus]
    return "; ".join(
        f"GPU {index}: {joined(throttle_names(reasons))}" for index, reasons in held if reasons
    )


def _lowered_limit(state: GpuState) -> str:
    """That the power limit of a GPU is below its default; empty where it is not, or is unknown."""
    limit, default = state.gpu.power_limit_w, state.gpu.default_power_limit_w
    if limit is None or default is None or limit >= default:
        return ""
    return f"GPU {state.index}: power limit {limit:.0f} W, by default {default:.0f} W"


def _major(version: str) -> int:
    return int(version.split(".")[0])
