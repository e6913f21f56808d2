"""A model under every layout of a node of four GPUs, with the engines `torch` and `vllm` in turn.

    python benchmarks/all_layouts.py qwen2.5-32b
    python benchmarks/all_layouts.py llama-70b --starts 3 --minutes 9
    python benchmarks/all_layouts.py qwen2.5-32b --gpus 2 --dry-run

Calls `orchestrator` only, and prints every call. The parts, in order: `calibrate`; every layout at
1, 32 and 100 concurrent, two closed batches a start; tensor parallelism with longer prompts; tensor
parallelism without its collectives. Layouts and engines take turns, start by start. After --minutes
the run in flight is finished, if it can be soon, and the rest is left: exit status 3. The same call
again goes on. On another node give --allow-other-node: it becomes a block of the results. --parts
leaves some of them out.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LEFT = 3  # the exit status where something is left
NOTICE_S = 20.0  # that `submit` may take to end after a warning
LAYOUTS = {4: ("tp4", "pp4", "tp2pp2", "dp4"), 2: ("tp2", "pp2", "dp2")}
# A replica on each GPU needs a model that fits on one.
WHOLE_MODEL_FITS = ("qwen2.5-32b", "llama-8b")
PARTS = ("layouts", "long", "without")  # after `calibrate`; each has a folder of its own
LOADS = ("--max-concurrency", "1,32,100")
ORCHESTRATOR = (sys.executable, "-m", "orchestrator")


def main() -> int:
    """Run what is left. Returns the exit status."""
    asked = parse()
    deadline = time.monotonic() + 60 * asked.minutes
    for command in commands(asked):
        print(f"$ {shlex.join(('orchestrator', *command))}", flush=True)
        if not asked.dry_run and not ran(command, deadline):
            print("Something is left: the same call again goes on from here.")
            return LEFT
    return 0


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--gpus", type=int, choices=sorted(LAYOUTS), default=4)
    parser.add_argument("--engine", help="default: torch, and vllm where it is installed")
    parser.add_argument("--starts", type=int, default=3, help="of each layout and engine")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="default: no limit")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--result-dir", type=Path, default=Path("results"))
    parser.add_argument("--allow-other-node", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    asked = parser.parse_args()
    if asked.engine is None:
        asked.engine = "torch,vllm" if importlib.util.find_spec("vllm") else "torch"
    return asked


def commands(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The arguments of `orchestrator`, one call after the other."""
    fabric = asked.result_dir / "fabric"
    if not (fabric / "fabric.arrow").exists():
        yield ("calibrate", "--ranks", str(asked.gpus), "--out", str(fabric))
    tensor, *_ = LAYOUTS[asked.gpus]
    together = [tensor, *(["tp2pp2"] if asked.gpus == 4 else [])]
    starts = ("--num-starts", str(asked.starts))
    every = ",".join(layouts(asked.model, asked.gpus))
    fewer = ("--max-concurrency", "1,100", "--num-starts", str(min(2, asked.starts)))
    options = {
        "layouts": ("--strategy", every, *LOADS, *starts, "--save-spans"),
        "long": ("--strategy", tensor, "--scenario", "long", *LOADS, *starts),
        "without": ("--strategy", ",".join(together), "--ablate", "comm", *fewer),
    }
    for part in asked.parts:
        yield submit(asked, part, *options[part])


def layouts(model: str, gpus: int) -> list[str]:
    """Those of a node that the model fits under, by what is known of it."""
    return [
        name for name in LAYOUTS[gpus] if not name.startswith("dp") or model in WHOLE_MODEL_FITS
    ]


def submit(asked: argparse.Namespace, part: str, *more: str) -> tuple[str, ...]:
    """One call of `orchestrator submit`."""
    return (
        "submit",
        *("--model", asked.model, "--load-format", "dummy", "--engine", asked.engine),
        *more,
        *("--num-warmups", "1", "--num-runs", "2"),
        *("--fabric", str(asked.result_dir / "fabric" / "fabric.arrow")),
        *("--result-dir", str(asked.result_dir / part)),
        *(("--allow-other-node",) if asked.allow_other_node else ()),
    )


def ran(command: Sequence[str], deadline: float) -> bool:
    """Whether it ended before the deadline. It is warned then, which lets it finish its run. Ends
    this process where it fails."""
    process = subprocess.Popen([*ORCHESTRATOR, *command])
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
        process.wait(NOTICE_S)
        return False
    if status:
        raise SystemExit(f"orchestrator ended with status {status}")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
