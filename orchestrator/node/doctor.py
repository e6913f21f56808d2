"""Will this node give good numbers? Pure checks over the facts that `orchestrator.node.facts`
gathers.

fail: results would be wrong, or nothing will run. warn: results may be slower or less steady than
the hardware allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.node import datasheet
from orchestrator.units import format_bytes

PASS, WARN, FAIL = "pass", "warn", "fail"

MIN_SHM, GOOD_SHM = (
    64 << 20,
    1 << 30,
)  # docker's default, which NCCL and Ray outgrow; what Ray's store and NCCL take
MIN_FILES, GOOD_FILES = 4096, 65536  # Ray opens some for each worker and asks for 65536 itself
BUSY_SHARE = 0.25  # of the cores: what others may use before it shows in launch gaps
IDLE_BYTES = 2 << 30  # a GPU nobody uses holds less: driver and contexts
HOT_C = 80
# NVML's reasons, by what they mean for a measurement; an idle GPU's low clock and a limit the user
# set are no fault.
SLOWED = {"HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown"}
LIMITED = {
    "SwPowerCap",
    "ApplicationsClocksSetting",
    "SyncBoost",
    "DisplayClockSetting",
    "BoardLimit",
    "Reliability",
}

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """status: pass, warn or fail. found: what is true here. advice: what to do, empty where nothing
    is to be done."""

    name: str
    status: str
    found: str
    advice: str = ""


def examine(facts: Facts) -> list[Check]:
    """Every check that can be made here, in the order they are read."""
    of_gpus = GPU_CHECKS if facts["gpus"] else (no_gpus,)
    return [check(facts) for check in (*of_gpus, *CHECKS)]


def verdict(checks: Sequence[Check]) -> str:
    """What all checks together say, in one sentence."""
    worst = {check.status for check in checks}
    if FAIL in worst:
        return "This node will not give figures to be trusted: see what fails."
    if WARN in worst:
        return (
            "This node gives figures, but lower or less steady ones than it could: see the "
            "warnings."
        )
    return "This node will give good figures."


# -- GPUs


def no_gpus(facts: Facts) -> Check:
    found = (
        "none: layouts run on CPU workers, which shows that they work and says nothing about GPUs"
    )
    return Check("GPUs", WARN, found, "for figures, use a node with NVIDIA GPUs and their driver")


def driver(facts: Facts) -> Check:
    """torch runs on a driver of its own major CUDA version or a newer one."""
    names = ", ".join(dict.fromkeys(gpu["name"] for gpu in facts["gpus"]))
    needs, has = facts["torch"].get("cuda"), facts["driver_cuda"]
    found = (
        f"{facts['gpus'][0]['driver']} (CUDA {has or 'unknown'}), {len(facts['gpus'])} x {names}"
    )
    if needs and has and int(needs.split(".")[0]) > int(has.split(".")[0]):
        return Check(
            "driver",
            FAIL,
            f"{found}; torch is built for CUDA {needs}",
            "update the driver, or use a torch for its CUDA",
        )
    return Check("driver", PASS, found)


def torch_works(facts: Facts) -> Check:
    """torch starts and sees the GPUs that NVML sees."""
    torch, gpus = facts["torch"], len(facts["gpus"])
    if torch.get("error"):
        return Check(
            "torch", FAIL, torch["error"], "reinstall torch (pip install --force-reinstall torch)"
        )
    found = f"{torch['version']}, CUDA {torch['cuda'] or 'none'}"
    if gpus and torch["gpus"] == 0:
        return Check(
            "torch",
            FAIL,
            f"{found}: it sees no GPU, NVML sees {gpus}",
            "install torch for CUDA, not for CPU",
        )
    if torch["gpus"] != gpus:
        return Check(
            "torch",
            WARN,
            f"{found}: it sees {torch['gpus']} GPUs, NVML {gpus}",
            "look at CUDA_VISIBLE_DEVICES and MIG",
        )
    return Check("torch", PASS, found)


def nccl(facts: Facts) -> Check:
    found = facts["torch"].get("nccl")
    return (
        Check("NCCL", PASS, found)
        if found
        else Check("NCCL", FAIL, "none in torch", "install torch for CUDA on Linux")
    )


def peer_access(facts: Facts) -> Check:
    """Every GPU reads every other's memory, by CUDA where it was asked and else by NVML."""
    asked = facts["torch"].get("peers") or [[p["a"], p["b"], p["p2p"]] for p in facts["pairs"]]
    if not asked:
        return Check("P2P access", PASS, "one GPU")
    without = [f"{a}-{b}" for a, b, reaches in asked if reaches is False]
    if without:
        advice = (
            "switch ACS/IOMMU off in the BIOS, or give the virtual machine whole NVLink islands; "
            "NCCL copies through the host"
        )
        return Check("P2P access", WARN, f"not between {_list(without)}", advice)
    unknown = [f"{a}-{b}" for a, b, reaches in asked if reaches is None]
    return Check(
        "P2P access", PASS, f"unknown for {_list(unknown)}" if unknown else "between all GPUs"
    )


def nvlink(facts: Facts) -> Check:
    """Every pair has as many links as the data sheet gives one GPU, and all pairs the same."""
    widths: dict[int, list[str]] = {}
    for pair in facts["pairs"]:
        widths.setdefault(pair["nvlinks"], []).append(f"{pair['a']}-{pair['b']}")
    if not widths:
        return Check("NVLink", PASS, "one GPU")
    found = "; ".join(
        f"{width or 'no'} links between {_list(names)}"
        for width, names in sorted(widths.items(), reverse=True)
    )
    sheet = datasheet.sheet(facts["gpus"][0]["name"])
    full = sheet.links if sheet else max(widths)
    if set(widths) == {0}:
        paths = ", ".join(sorted({pair["path"] for pair in facts["pairs"]}))
        advice = (
            "tensor parallelism will spend most of its time waiting; expect pipeline or data "
            "parallelism to win"
        )
        return Check(
            "NVLink", WARN if full else PASS, f"none; PCIe ({paths})", advice if full else ""
        )
    if len(widths) > 1:
        return Check(
            "NVLink", WARN, found, "keep tensor parallelism within the pairs that have most links"
        )
    if min(widths) < full:
        return Check(
            "NVLink",
            WARN,
            f"{found}, of {full}",
            "a link is down, or GPUs are bridged: nvidia-smi nvlink --status",
        )
    return Check("NVLink", PASS, found)


def ecc(facts: Facts) -> Check:
    broken = [str(gpu["index"]) for gpu in facts["gpus"] if gpu["ecc_errors"]]
    if broken:
        return Check(
            "ECC",
            FAIL,
            f"uncorrected errors on GPU {', '.join(broken)}",
            "reset or replace it: its numbers may be wrong",
        )
    modes = {gpu["ecc"] for gpu in facts["gpus"]}
    if len(modes) > 1:
        return Check(
            "ECC",
            WARN,
            "on for some GPUs and off for others",
            "make them alike (nvidia-smi -e): ECC takes bandwidth",
        )
    return Check("ECC", PASS, {True: "on, no errors", False: "off", None: "not told"}[modes.pop()])


def clocks(facts: Facts) -> Check:
    """Nothing holds a clock down but idleness, and no GPU is hot before the work begins."""
    for status, reasons, advice in (
        (FAIL, SLOWED, "look at cooling and power supply; wait until it is gone"),
        (
            WARN,
            LIMITED,
            "look at the power limit and locked clocks: nvidia-smi -q -d POWER,CLOCK; nvidia-smi "
            "-rac -rgc",
        ),
    ):
        found = {
            gpu["index"]: sorted(reasons & set(gpu["throttle"] or ())) for gpu in facts["gpus"]
        }
        held = [f"GPU {index}: {', '.join(names)}" for index, names in found.items() if names]
        if held:
            return Check("clocks", status, "; ".join(held), advice)
    hot = [
        f"GPU {gpu['index']}: {gpu['temperature_c']} C"
        for gpu in facts["gpus"]
        if (gpu["temperature_c"] or 0) > HOT_C
    ]
    if hot:
        return Check("clocks", WARN, "; ".join(hot), "let it cool down first")
    limits = ", ".join(
        dict.fromkeys(f"{gpu.get('max_sm_clock_mhz', '?')} MHz" for gpu in facts["gpus"])
    )
    return Check("clocks", PASS, f"not held down; up to {limits}")


def persistence(facts: Facts) -> Check:
    off = [str(gpu["index"]) for gpu in facts["gpus"] if gpu["persistence"] == 0]
    if off:
        return Check(
            "persistence",
            WARN,
            f"off on GPU {', '.join(off)}",
            "sudo nvidia-smi -pm 1: else the first use takes seconds",
        )
    return Check(
        "persistence",
        PASS,
        "not told" if all(gpu["persistence"] is None for gpu in facts["gpus"]) else "on",
    )


def mig(facts: Facts) -> Check:
    cut = [str(gpu["index"]) for gpu in facts["gpus"] if gpu["mig"]]
    if cut:
        return Check(
            "MIG",
            FAIL,
            f"on on GPU {', '.join(cut)}",
            "use whole GPUs (nvidia-smi -mig 0): instances are no peers",
        )
    return Check("MIG", PASS, "off")


def others(facts: Facts) -> Check:
    """Nobody else computes on the GPUs; in a container NVML hides the processes, but not the memory
    they hold."""
    busy = []
    for gpu in facts["gpus"]:
        used, pids = gpu["memory_used_bytes"] or 0, gpu["processes"] or []
        if pids or used > IDLE_BYTES:
            who = f"process {', '.join(map(str, pids))}" if pids else "somebody"
            busy.append(f"GPU {gpu['index']}: {who} holds {format_bytes(used)}")
    if busy:
        return Check(
            "other processes",
            WARN,
            "; ".join(busy),
            "end them, or leave these GPUs out with CUDA_VISIBLE_DEVICES",
        )
    return Check("other processes", PASS, "none on the GPUs")


# -- the machine


def shared_memory(facts: Facts) -> Check:
    free = facts["shm_free_bytes"]
    advice = "give the container more: docker run --shm-size=8g (or --ipc=host)"
    if free is None or free < MIN_SHM:
        return Check(
            "shared memory",
            FAIL,
            "no /dev/shm" if free is None else f"{format_bytes(free)} free",
            advice,
        )
    return _at_least("shared memory", free >= GOOD_SHM, f"{format_bytes(free)} free", advice)


def open_files(facts: Facts) -> Check:
    limit = facts["nofile"]
    if limit is not None and limit < MIN_FILES:
        return Check("open files", FAIL, f"at most {limit}", f"ulimit -n {GOOD_FILES}")
    found = "unlimited" if limit is None else f"at most {limit}"
    return _at_least(
        "open files", limit is None or limit >= GOOD_FILES, found, f"ulimit -n {GOOD_FILES}"
    )


def locked_memory(facts: Facts) -> Check:
    """RDMA between the nodes of a cluster pins memory; within a node nothing does."""
    limit, several_nodes = facts["memlock"], facts["gpus"] and facts["ray"]["address"]
    found = "unlimited" if limit is None else format_bytes(limit)
    return _at_least(
        "locked memory",
        limit is None or not several_nodes,
        found,
        "ulimit -l unlimited: InfiniBand pins memory",
    )


def processors(facts: Facts) -> Check:
    """A core for each GPU's worker and one for the driver; and others must not keep them busy."""
    cpus, load = facts["cpus"], facts["load"]
    found = f"{cpus} cores, load {load:.1f}"
    if facts["gpus"] and cpus < len(facts["gpus"]) + 1:
        return Check(
            "CPU",
            WARN,
            found,
            f"give this job {len(facts['gpus']) + 1} cores: each GPU's launches need one",
        )
    return _at_least(
        "CPU",
        load <= max(1.0, BUSY_SHARE * cpus),
        found,
        "something else is running here; wait, or end it",
    )


def versions(facts: Facts) -> Check:
    wrong = [package for package in facts["packages"] if not package["ok"]]
    if wrong:
        names = "; ".join(
            f"{p['name']} {p['installed'] or 'missing'} (wants {p['range'] or 'any'})"
            for p in wrong
        )
        return Check("packages", FAIL, names, "pip install -c constraints.txt -e .")
    other = [
        f"{p['name']} {p['installed']} ({p['tested']})"
        for p in facts["packages"]
        if p["tested"] not in (None, _public(p))
    ]
    found = f"all {len(facts['packages'])} in the ranges that pyproject.toml asks for"
    return Check("packages", PASS, f"{found}; not as tested: {_list(other)}" if other else found)


def _public(package: Mapping[str, Any]) -> str:
    """2.13.0+cpu -> 2.13.0"""
    return str(package["installed"]).partition("+")[0]


def ray(facts: Facts) -> Check:
    there = facts["ray"]
    if there["error"]:
        return Check(
            "Ray",
            FAIL,
            there["error"],
            "ray start --head there, or leave --address and RAY_ADDRESS out",
        )
    return Check(
        "Ray",
        PASS,
        f"{there['address']} answers"
        if there["address"]
        else "no address given: a local one is started",
    )


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
CHECKS: Sequence[Callable[[Facts], Check]] = (
    torch_works,
    shared_memory,
    open_files,
    locked_memory,
    processors,
    versions,
    ray,
)


def _at_least(name: str, good: bool, found: str, advice: str) -> Check:
    return Check(name, PASS, found) if good else Check(name, WARN, found, advice)


def _list(names: Sequence[str], most: int = 8) -> str:
    return (
        ", ".join(names)
        if len(names) <= most
        else f"{', '.join(names[:most])} and {len(names) - most} more"
    )


def counts(checks: Sequence[Check]) -> Iterator[tuple[str, int]]:
    """(status, how many) of every status that there is, the worst first."""
    for status in (FAIL, WARN, PASS):
        number = sum(check.status == status for check in checks)
        if number:
            yield status, number
