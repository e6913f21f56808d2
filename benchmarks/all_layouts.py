"""Two models under every layout of a node of four GPUs, with the engines `torch` and `vllm` in
turn.

    python benchmarks/all_layouts.py --minutes 9
    python benchmarks/all_layouts.py llama-70b --parts layouts --starts 1
    python benchmarks/all_layouts.py --gpus 2 --dry-run

Calls `orchestrator` only, and prints every call. First `calibrate`; then, as often as there are
--starts, one start of every layout at 1, 32 and 100 concurrent, two closed batches a start, of one
model and then of the other; then tensor parallelism with longer prompts; then layouts with tensor
parallelism without their collectives. Layouts and engines take turns. The first start keeps all
spans of what it observes.

After --minutes the run in flight is finished, if it can be soon, and the rest is left: exit status
3. The same call again goes on, also on another node, if it has --allow-other-node: starts pool over
nodes, and the results say which node each was made on. What a stay on a node should be is one start
of every layout of a model: give fewer --starts first. Results are in a folder for each part below
--result-dir; what `orchestrator pack` makes of them is what docs/results holds.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

LEFT = 3  # the exit status where something is left
NOTICE_S = 20.0  # that `submit` may take to end after a warning
MODELS = ("qwen2.5-32b", "llama-70b")
LAYOUTS = {4: ("tp4", "pp4", "tp2pp2", "dp4"), 2: ("tp2", "pp2", "dp2")}
# A replica on each GPU needs a model that fits on one.
WHOLE_MODEL_FITS = ("qwen2.5-32b", "llama-8b")
PARTS = ("layouts", "long", "without")  # after `calibrate`; each has a folder of its own
LOADS = ("--max-concurrency", "1,32,100")
ORCHESTRATOR = (sys.executable, "-m", "orchestrator")


def main() -> int:
    """Run what is left. Returns the exit status."""
    asked = parse()
    return run_all(commands(asked), asked, ran)


def run_all(
    calls: Iterable[Sequence[str]],
    asked: argparse.Namespace,
    ran: Callable[[Sequence[str], float], bool],
) -> int:
    """Print every call, and make it unless that is all that is asked for, until the time is up.
    Returns the exit status. ran: whether a call ended before the deadline."""
    deadline = time.monotonic() + 60 * asked.minutes
    for command in calls:
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
    parser.add_argument("models", nargs="*", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--gpus", type=int, choices=sorted(LAYOUTS), default=4)
    parser.add_argument("--engine", help="default: torch, and vllm where it is installed")
    parser.add_argument("--layouts", help="default: all of the GPUs that a model fits under")
    parser.add_argument("--starts", type=int, default=3, help="of each layout and engine")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="default: no limit")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--result-dir", type=Path, default=Path("results"))
    parser.add_argument("--allow-other-node", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    asked = parser.parse_args()
    asked.models = asked.models or list(MODELS)
    if asked.engine is None:
        asked.engine = "torch,vllm" if importlib.util.find_spec("vllm") else "torch"
    return asked


def commands(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The arguments of `orchestrator`, one call after the other."""
    fabric = asked.result_dir / "fabric"
    if not (fabric / "fabric.arrow").exists():
        yield ("calibrate", "--ranks", str(asked.gpus), "--out", str(fabric))
    for part in asked.parts:
        for starts in range(1, asked.starts + 1):
            for model in asked.models:
                if names := of_part(part, layouts(asked, model)):
                    yield submit(asked, part, model, names, starts)


def layouts(asked: argparse.Namespace, model: str) -> list[str]:
    """Those that were asked for, else those of a node that the model fits under, by what is known
    of it."""
    if asked.layouts:
        return str(asked.layouts).split(",")
    every = LAYOUTS[asked.gpus]
    return [name for name in every if not name.startswith("dp") or model in WHOLE_MODEL_FITS]


def of_part(part: str, names: Sequence[str]) -> list[str]:
    """The layouts of a part: longer prompts are for tensor parallelism alone, and collectives are
    left out where it has some."""
    wanted = {
        "layouts": lambda name: True,
        "long": lambda name: name.startswith("tp") and "pp" not in name,
        "without": lambda name: name.startswith("tp"),
    }
    return list(filter(wanted[part], names))


def submit(
    asked: argparse.Namespace, part: str, model: str, names: Sequence[str], starts: int
) -> tuple[str, ...]:
    """One call of `orchestrator submit`, which makes the starts that are missing."""
    options = {
        "layouts": ("--save-spans",),
        "long": ("--scenario", "long"),
        "without": ("--ablate", "comm"),
    }
    return (
        "submit",
        *("--model", model, "--load-format", "dummy", "--engine", asked.engine),
        *("--strategy", ",".join(names), *LOADS, *options[part]),
        *("--num-starts", str(starts), "--num-warmups", "1", "--num-runs", "2"),
        *("--fabric", str(asked.result_dir / "fabric" / "fabric.arrow")),
        *("--result-dir", str(asked.result_dir / part)),
        *(("--allow-other-node",) if asked.allow_other_node else ()),
    )


class EndedBadly(SystemExit):
    """A call of `orchestrator` failed. status: its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"orchestrator ended with status {status}")
        self.status = status


def ran(command: Sequence[str], deadline: float) -> bool:
    """Whether it ended before the deadline. Ends this process where it fails."""
    if time.monotonic() >= deadline:
        return False
    process = subprocess.Popen([*ORCHESTRATOR, *command])
    try:
        status = process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        end(process)
        return False
    if status:
        raise EndedBadly(status)
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """Warn it, which lets it finish its run, and stop it where it does not end by itself."""
    process.send_signal(signal.SIGUSR1)
    try:
        process.wait(NOTICE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
