"""An experiment for this machine, written as a file to begin with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import UserError
from orchestrator.report.output import Output, say
from strategies.errors import LayoutError
from workers.units import duration

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment
    from strategies.shapes import Topology

CPU_WORKERS = 4
LARGEST_FIRST = ("llama-70b", "qwen2.5-32b", "llama-8b", "tiny")
LOADS = {True: (1, 32, 100), False: (1, 8)}  # with GPUs, without
STARTS = {True: 3, False: 1}


@dataclass(frozen=True, slots=True)
class Choice:
    """A layout of all devices. planned: empty where it cannot be run. reason: why not."""

    layout: str
    planned: Sequence[PlannedDeployment]
    reason: str = ""


def init(path: Path, model: str | None, out: Output) -> None:
    """Write an experiment that runs on this machine. model: None: the largest preset that fits.
    Raises UserError where the file is there, or no layout of the model fits."""
    from orchestrator.cluster.hardware import local_topology

    if path.exists():
        raise UserError(f"{path} is there already; give another name with --out, or remove it")
    gpus = local_topology("cuda")
    name, choices = _chosen(model, gpus)
    fitting = [one.layout for one in choices if one.planned]
    try:
        path.write_text(_text(name, gpus, choices), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if out.as_json:
        out.document({"path": str(path), "model": name, "layouts": fitting})
        return
    say(f"{path}: {name} under {', '.join(fitting)}.")
    say(f"See what it would do: orchestrator submit --config {path} --dry-run")
    say(f"Run it:               orchestrator submit --config {path}")


def _chosen(model: str | None, gpus: Topology) -> tuple[str, list[Choice]]:
    """The model, and each layout of it with whether it fits."""
    names = _layouts(len(gpus.devices) or CPU_WORKERS)
    presets = LARGEST_FIRST if gpus.devices else LARGEST_FIRST[-1:]
    for name in (model,) if model else presets:
        choices = [_choice(layout, name, gpus) for layout in names]
        if any(one.planned for one in choices):
            return name, choices
    raise UserError(f"{model or 'no preset'} runs under no layout here: {choices[0].reason}")


def _layouts(devices: int) -> list[str]:
    """Every tp x pp of all devices with tp a power of two, and replicas of one device each."""
    if devices == 1:
        return ["tp1"]
    powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
    cut = [_name(tp, devices // tp) for tp in reversed(powers)]
    return [*cut, f"dp{devices}"]


def _name(tp: int, pp: int) -> str:
    return "".join(f"{key}{number}" for key, number in (("tp", tp), ("pp", pp)) if number > 1)


def _choice(layout: str, model: str, gpus: Topology) -> Choice:
    from orchestrator.plan import planning

    asked = _asked([layout], model, gpus)
    try:
        device, topology = planning.choose_device(asked, gpus)
        return Choice(layout, planning.plan_experiment(asked, device, topology))
    except (UserError, LayoutError) as error:
        return Choice(layout, (), " ".join(str(error).split()))


def _asked(layouts: Sequence[str], model: str, gpus: Topology) -> Experiment:
    from orchestrator.experiment import Experiment

    return Experiment.model_validate(
        {
            "strategy": layouts,
            "model": model,
            "load_format": _load_format(model),
            "max_concurrency": LOADS[bool(gpus.devices)],
            "num_starts": STARTS[bool(gpus.devices)],
        }
    )


def _load_format(model: str) -> Literal["auto", "dummy"]:
    """Presets but tiny have no weights."""
    return "dummy" if model in LARGEST_FIRST[:-1] else "auto"


def _text(model: str, gpus: Topology, choices: Sequence[Choice]) -> str:
    asked = _asked([one.layout for one in choices if one.planned], model, gpus)
    lines = [
        f"# {_machine(gpus)}.",
        "# The fields are the options of `orchestrator submit --help`.",
        f"# {_how_long(asked, choices, gpus)}",
        f"model: {json.dumps(str(Path(model).resolve()) if Path(model).is_dir() else model)}",
    ]
    if asked.load_format == "dummy":
        lines += ["load_format: dummy  # random weights; for yours: model: PATH, without this line"]
    lines += ["strategy:", *(_line(one) for one in choices)]
    what_for = "from 2 on there are intervals" + (", and verdicts" if gpus.devices else "")
    lines += [
        "engine: [torch]  # [torch, vllm] compares both, where vLLM is installed",
        "scenario: short  # 256 tokens in, 128 out; or dataset_path: FILE",
        f"max_concurrency: {list(asked.max_concurrency)}  # requests in flight",
        f"num_starts: {asked.num_starts}  # {what_for}",
    ]
    return "\n".join(lines) + "\n"


def _line(one: Choice) -> str:
    return f"  - {one.layout}" if one.planned else f"  # - {one.layout}: {one.reason}"


def _machine(gpus: Topology) -> str:
    if not gpus.devices:
        return "No GPU was found: ranks are processes that share the CPU, so nothing is ranked"
    kinds = Counter(one.name for one in gpus.devices)
    return "Found " + ", ".join(f"{count} x {name}" for name, count in kinds.items())


def _how_long(asked: Experiment, choices: Sequence[Choice], gpus: Topology) -> str:
    """The number of runs, and how long they should take where that is predicted."""
    cells = [cell for one in choices for planned in one.planned for cell in planned.cells]
    runs = f"{len(cells) * asked.num_starts} runs"
    name = min((one.name for one in gpus.devices), default=None)
    seconds = [one for choice in choices for one in _seconds(choice, asked, name)]
    if None in seconds:
        return f"{runs}; how long they take is known after the first."
    total = asked.num_starts * sum(one for one in seconds if one is not None)
    return f"{runs}, about {duration(total)} as predicted, and the builds of the layouts."


def _seconds(one: Choice, asked: Experiment, device_name: str | None) -> Iterator[float | None]:
    from orchestrator.run.jobs import Job
    from orchestrator.store.folders import folder_of
    from orchestrator.store.store import Store

    for planned in one.planned:
        job = Job(planned, asked, Store(folder_of(asked)))
        yield from (job.expected_s(cell, device_name) for cell in planned.cells)
