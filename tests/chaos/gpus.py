"""`kill -9` of a worker and of a driver that hold the memory of two GPUs: NVML has to show it free
again within 15 s. Usage: python tests/chaos/gpus.py [REPEATS]. Prints a line a strike; exits with 1
where memory stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pynvml

GPUS = 2
WITHIN_S = 15.0
HOLDS_BYTES = 1 << 30  # of each GPU, when the workers have built
SLACK_BYTES = 64 << 20  # NVML's own accounting moves by a few MiB
LONGEST_S = 300.0
COMMAND = [
    *(sys.executable, "-m", "orchestrator", "submit", "--device", "cuda", "--strategy", "tp2"),
    *("--model", "llama-8b", "--load-format", "dummy", "--max-concurrency", "8"),
    *("--input-len", "256", "--output-len", "512", "--num-runs", "50", "--num-warmups", "0"),
]


def used() -> list[int]:
    """Bytes taken on each of the first GPUS."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(GPUS)]
    return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]


def holders() -> list[int]:
    """Process ids that NVML knows on these GPUs."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(GPUS)]
    return [
        one.pid for handle in handles for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    ]


@contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep, once its workers hold memory of every GPU."""
    before = used()
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "--result-dir", str(folder)], stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + LONGEST_S
        while min(now - then for now, then in zip(used(), before, strict=True)) < HOLDS_BYTES:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "out").read_text()[-2000:])
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def worker_of(driver_pid: int) -> psutil.Process:
    """A rank's process below the driver."""
    for one in psutil.Process(driver_pid).children(recursive=True):
        with suppress(psutil.Error):  # others end meanwhile
            if "Worker" in " ".join(one.cmdline()):
                return one
    raise LookupError(f"no rank below {driver_pid}")


def free_after(before: list[int]) -> float | None:
    """Seconds until the memory that was free is free again; None where it is not in time."""
    began = time.monotonic()
    while time.monotonic() - began < WITHIN_S:
        if all(now <= then + SLACK_BYTES for now, then in zip(used(), before, strict=True)):
            return time.monotonic() - began
        time.sleep(0.05)
    return None


def strike(whom: str, folder: Path) -> float | None:
    """Kill a worker and stop the sweep, or kill the driver; see `free_after`. The worker's group
    would be built again, so the driver is stopped as soon as the worker is dead."""
    before = used()
    with driver(folder) as process:
        if whom == "worker":
            worker_of(process.pid).kill()
            process.terminate()
        else:
            process.kill()
            process.wait()
        return free_after(before)


def main(repeats: int) -> int:
    pynvml.nvmlInit()
    print(f"{GPUS} x {pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))}")
    stays = 0
    for number in range(repeats):
        for whom in ("worker", "driver"):
            with tempfile.TemporaryDirectory() as folder:
                took = strike(whom, Path(folder))
            stays += took is None
            said = f"free again after {took:.1f} s" if took is not None else f"held by {holders()}"
            print(f"{number + 1} kill -9 of the {whom}: {said}", flush=True)
    return 1 if stays else 0


if __name__ == "__main__":
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
