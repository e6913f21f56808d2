"""What layouts would reach on GPUs that need not be here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.report.output import Output

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.predict.factors import EngineFactors
    from orchestrator.predict.layouts import Case
    from orchestrator.predict.load import Asked
    from orchestrator.predict.plan import Machines, Plan, Planned, Runs
    from strategies import ModelShape
    from strategies.precision import Precision


SEATS = (256,)  # max_num_seqs of vLLM
NAMES = (
    *("gpu", "gpus", "gpus_per_node", "network", "gpu_hour_cost"),
    *("failure_rate", "recovery", "straggler"),
)


def machines_of(options: dict[str, Any]) -> Machines | None:
    """The GPUs that a plan is for, taken out of the options; None where none are named."""
    from orchestrator.errors import UserError
    from orchestrator.predict.plan import Machines

    asked = {name: options.pop(name) for name in NAMES}
    given = [f"--{name.replace('_', '-')}" for name, one in asked.items() if one is not None]
    if given and (asked["gpu"] is None or asked["gpus"] is None):
        raise UserError(f"{', '.join(given)}: --gpu and --gpus go together; give both")
    return Machines(**asked, fabric=options["fabric"]) if given else None


def plan(
    experiment: Experiment,
    machines: Machines | None,
    layouts: Sequence[str],
    out: Output,
    is_to_run: bool = False,
) -> None:
    """Print a ranking of layouts. layouts: by name; none: every tp x pp x dp of the GPUs.
    is_to_run: also how many runs an experiment is, and for how long. Raises UserError without
    machines; ends with status 2 where nothing is predicted."""
    from orchestrator.errors import UserError
    from orchestrator.predict.plan import as_data
    from orchestrator.report.predicted.plan_table import render

    if experiment.workload == "train":
        raise UserError(
            "how fast a layout trains is not predicted; `orchestrator explain LAYOUT --workload "
            "train` says what it takes and sends"
        )
    if experiment.device == "cpu":
        raise UserError("--gpu is about GPUs, and the device cpu is asked for; give one of them")
    if machines is None:
        raise UserError("a plan is for GPUs of some kind; give --gpu and --gpus, as h200 and 4")
    found = predicted(experiment, machines, layouts, is_to_run)
    out.show(lambda: as_data(found), lambda console: render(found, console))
    if not any(found.predictions):
        raise SystemExit(2)


def predicted(
    experiment: Experiment,
    machines: Machines,
    layouts: Sequence[str],
    is_to_run: bool = False,
    started: str | None = None,
) -> Plan:
    """Predict every cell of an experiment. started: when it was, for one whose kernels were those
    of then; see `EngineFactors.at`. Raises UserError for one that no prediction is made of."""
    from orchestrator.plan import models, precision
    from orchestrator.predict.plan import Plan

    _check_engine(experiment)
    machines.check_nodes()
    shape = models.resolve(experiment.model, "dummy").shape
    kept = precision.resolve(experiment, shape, "cuda")
    planned = tuple(
        _planned(experiment, machines, layouts, engine, shape, kept, number, started)
        for engine in experiment.engine or ("torch",)
        for number in range(len(experiment.scenarios))
    )
    name = kept.dtype if kept.name == "none" else f"{kept.dtype}, {kept.name}"
    runs = _runs(experiment) if is_to_run else None
    return Plan(experiment.model, name, machines, machines.hardware(), planned, runs)


def _check_engine(experiment: Experiment) -> None:
    """Raise UserError where an engine is to be another one than factors are fitted to."""
    from orchestrator.errors import UserError
    from orchestrator.experiment import is_changed

    if is_changed(experiment) or experiment.technique:
        raise UserError(
            "a prediction is of an engine as it is by itself; leave out its switches (attention, "
            "cuda_graphs, fusion, batching, allreduce, overlap), engine_arg and technique"
        )


def _runs(experiment: Experiment) -> Runs:
    from orchestrator.predict.plan import Runs

    least = experiment.min_duration or 0.0
    return Runs(experiment.num_starts, experiment.num_runs, least, experiment.ablate)


def _planned(
    experiment: Experiment,
    machines: Machines,
    layouts: Sequence[str],
    engine: str,
    shape: ModelShape,
    kept: Precision,
    number: int,
    started: str | None,
) -> Planned:
    from orchestrator.predict import factors
    from orchestrator.predict.degradation import sweeps
    from orchestrator.predict.layouts import Case, candidates
    from orchestrator.predict.plan import SWEPT, Planned
    from strategies.registry import factorisations

    scenario = experiment.scenarios[number]
    fitted = factors.load().of(engine).at(started or factors.NEWEST)
    loads = _loads(experiment, number, fitted, machines.gpu_hour_cost)
    asked = max(loads, key=lambda load: load.max_concurrency)
    few = experiment.products != "cublas" and experiment.pdl != "off"
    case = Case(shape, kept, machines.hardware(), fitted, asked, few)
    _check_few(experiment, case)
    names = tuple(layouts) or tuple(factorisations(machines.gpus))
    found = candidates(case, names, machines.gpus, asked.max_concurrency)
    ranked = tuple(map(found.under, loads))
    first = [one.layout for one in ranked[0].predictions[:SWEPT]]
    return Planned(
        scenario.name,
        asked.lengths.input_len,
        asked.lengths.output_len,
        engine,
        fitted.provenance,
        ranked,
        () if asked.arrivals else tuple(sweeps(found, first)),
        asked.arriving,
        machines.reliability if machines.gpus > case.hardware.gpus_per_node else None,
    )


def _check_few(experiment: Experiment, case: Case) -> None:
    """Raise UserError for kernels of few rows that the engine has not on such GPUs, as a run
    does."""
    from orchestrator.errors import UserError

    if case.has_few:
        return
    for option, value in (("products", "triton"), ("pdl", "on")):
        if getattr(experiment, option) == value:
            raise UserError(
                f"the engine {case.factors.engine} has no --{option} {value} on "
                f"{case.hardware.name}; leave it out"
            )


def _loads(
    experiment: Experiment, number: int, fitted: EngineFactors, cost: float | None
) -> list[Asked]:
    """The load of a scenario at each concurrency. Lengths that are drawn are other ones at each, as
    those of a run are."""
    seats = experiment.max_concurrency
    if experiment.dataset_path is None:
        return [asked_of(experiment, number, fitted, cost, each) for each in seats]
    asked = asked_of(experiment, number, fitted, cost)  # a dataset is read once
    return [replace(asked, max_concurrency=each) for each in seats]


def asked_of(
    experiment: Experiment,
    number: int,
    fitted: EngineFactors,
    cost: float | None = None,
    seats: int | None = None,
) -> Asked:
    """The load of a scenario. cost: of an hour of a GPU. seats: requests at once; None: the most
    that are asked for. Raises UserError for one that no prediction is made of."""
    from orchestrator.plan import models
    from orchestrator.plan.arrival_times import trace_in_words
    from orchestrator.plan.open_loops import is_open, longest_prompt, timed_requests
    from orchestrator.plan.workload import check_scenario, longest_input
    from orchestrator.predict.load import Arrival, Asked
    from orchestrator.predict.plan import check_known
    from orchestrator.predict.replica import Lengths

    scenario = experiment.scenarios[number]
    model = models.resolve(experiment.model, "dummy")
    seats = seats or max(experiment.max_concurrency)
    if experiment.dataset_path is None:
        check_scenario(scenario, model)
    if is_open(experiment) and not experiment.find_rate:
        timed = timed_requests(experiment, scenario, seats, model)
        found = tuple(Arrival(*one) for one in timed)
        most = _prefill_tokens(experiment, fitted, longest_prompt(experiment, timed))
        window, speed = experiment.trace_window, experiment.trace_speed
        trace = trace_in_words(window, speed) if experiment.request_rate is None else ""
        return replace(Asked.opened(found, seats, most, cost), trace=trace)
    check_known(scenario.name, scenario.input_len, scenario.output_len, _other(experiment))
    most = _prefill_tokens(experiment, fitted, longest_input(experiment))
    lengths = Lengths(scenario.input_len, scenario.output_len, most)
    return Asked(lengths, seats, experiment.num_prompts, cost)


def _prefill_tokens(experiment: Experiment, fitted: EngineFactors, whole: int) -> int:
    """Most prompt tokens of a pass: the engine's own number where none is asked for, else that of a
    run. whole: tokens of the longest prompt."""
    from orchestrator.plan.planning import choose_prefill_tokens

    is_own = experiment.chunked_prefill_size is None and not fitted.separate
    return fitted.prefill_tokens if is_own else choose_prefill_tokens(experiment, whole)


def _other(experiment: Experiment) -> str | None:
    """What makes a load another one than those that are predicted."""
    if experiment.find_rate:
        return "a search of a rate"
    return "lengths that differ" if experiment.range_ratio else None


def seated(flags: dict[str, object]) -> dict[str, object]:
    """Flags of an experiment; in an open loop with as many seats as vLLM has, unless said."""
    is_open = any(name in flags for name in ("request_rate", "dataset_path"))
    return {"max_concurrency": SEATS, **flags} if is_open else flags
