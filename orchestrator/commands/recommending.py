"""Which hardware and layout to take, of GPUs that need not be here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from orchestrator.commands.predicting import asked_of
from orchestrator.report.output import Output
from orchestrator.store.names import names_in

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.experiment import Experiment
    from orchestrator.predict.hardware import Hardware
    from orchestrator.predict.kinds import Kinds
    from orchestrator.predict.layouts import Case
    from orchestrator.predict.matrix import Load
    from orchestrator.predict.objectives import Objective
    from orchestrator.report.predicted.selection_table import Selections
    from strategies.precision import Precision


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked through, and for what, as it was written. gpu: none is every kind of which
    enough is known. model: several, of a matrix. out: a folder for its files."""

    gpu: tuple[str, ...]
    slo: tuple[str, ...] = ()
    gpus_max: int = 8
    gpus_per_node: int | None = None
    network: float | None = None
    gpu_hour_cost: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    out: Path | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Raises UserError for what is no limit on a median latency."""
        from orchestrator.errors import UserError
        from orchestrator.experiment.levels import medians
        from orchestrator.predict.objectives import Objective

        try:
            limits = medians(self.slo)
        except ValueError as error:
            raise UserError(str(error)) from error
        return tuple(Objective(metric, limit) for metric, limit in limits.items())

    def kinds(self, precision: Precision) -> Kinds:
        """Raises UserError for a kind of which too little is known."""
        from orchestrator.errors import UserError
        from orchestrator.predict.kinds import kinds

        names = names_in(self.gpu)
        if self.gpu and not names:
            raise UserError("--gpu names no kind of GPU; give one, as h200, or leave it out")
        found = kinds(names, precision, self.gpus_per_node, self.network)
        if self.network and all(self.gpus_max <= one.gpus_per_node for one in found.hardware):
            raise UserError(
                f"--network is between nodes, and {self.gpus_max} GPUs are within one; leave it "
                "out, or change --gpus-max or --gpus-per-node"
            )
        return found


def search_of(options: dict[str, Any]) -> Search:
    """What is to be looked for, taken out of the options; one model is an experiment's."""
    known = [one.name for one in fields(Search)]
    if not isinstance(options["model"], tuple):
        known.remove("model")
    return Search(**{name: options.pop(name) for name in known if name in options})


def recommend(search: Search, experiment: Experiment, out: Output) -> None:
    """Print the smallest and the cheapest hardware and layout that meet objectives. Raises
    UserError for what is no such question."""
    from orchestrator.errors import UserError
    from orchestrator.predict.kinds import counts, prices
    from orchestrator.predict.recommend import Wanted, recommend
    from orchestrator.report.predicted.recommendation import Answer, render
    from orchestrator.report.predicted.recommendation_data import as_data

    objectives = search.objectives
    if not objectives:
        raise UserError("a recommendation meets limits; give --slo, as in ttft:2000 tpot:50")
    _single(experiment)
    if experiment.output_len == 1 and any(one.metric == "tpot" for one in objectives):
        raise UserError("tpot is the time for each further token, and --output-len 1 has none")
    found = search.kinds(precision_of(experiment, experiment.model))
    case = case_of(experiment, experiment.model, 0, found.hardware[0])
    paid = prices(search.gpu_hour_cost, found.hardware)
    wanted = Wanted(case, objectives, found.hardware, counts(search.gpus_max), paid)
    scenario = experiment.scenarios[0].name
    answer = Answer(experiment.model, scenario, found.left_out, recommend(wanted))
    out.show(lambda: as_data(answer), lambda console: render(answer, console))


def case_of(experiment: Experiment, model: str, scenario: int, hardware: Hardware) -> Case:
    """What layouts are compared for: one scenario of a model, on one kind of GPU."""
    from orchestrator.plan import models
    from orchestrator.predict import factors
    from orchestrator.predict.layouts import Case

    fitted = factors.load().of((experiment.engine or ("torch",))[0])
    load = asked_of(experiment.model_copy(update={"model": model}), scenario, fitted)
    shape = models.resolve(model, "dummy").shape
    return Case(shape, precision_of(experiment, model), hardware, fitted, load)


def precision_of(experiment: Experiment, model: str) -> Precision:
    """In what a model is kept."""
    from orchestrator.plan import models, precision

    return precision.resolve(experiment, models.resolve(model, "dummy").shape, "cuda")


def crossover(search: Search, experiment: Experiment, out: Output) -> None:
    """Print from which bandwidth on one layout beats another. Raises UserError for what is no such
    question."""
    from orchestrator.predict.crossover import PAIRS, crossover
    from orchestrator.report.predicted.crossings import Crossings, as_data, render

    _single(experiment, "--engine", "--scenario")
    kinds = search.kinds(precision_of(experiment, experiment.model)).hardware
    case = case_of(experiment, experiment.model, 0, kinds[0])
    loads = [
        replace(case, hardware=kind, asked=replace(case.asked, max_concurrency=number))
        for kind in kinds
        for number in experiment.max_concurrency
    ]
    found = tuple(crossover(load, pair, out.as_json) for load in loads for pair in PAIRS)
    scenario = experiment.scenarios[0]
    lengths = scenario.name, scenario.input_len, scenario.output_len
    fitted = case.factors
    all_of = Crossings(experiment.model, *lengths, fitted.engine, fitted.provenance, found)
    out.show(lambda: as_data(all_of), lambda console: render(all_of, console))


def matrix(search: Search, experiment: Experiment, out: Output) -> None:
    """Print the best layout and the fewest GPUs for each load, model and kind of GPU; with a
    folder, write them and the crossovers as Arrow tables and a page too."""
    from orchestrator.predict.kinds import counts
    from orchestrator.predict.matrix import Asked, selections
    from orchestrator.report.predicted.selection_table import Selections, as_data, render
    from orchestrator.store.export import write_tables

    _single(experiment, "--concurrency", "--engine")
    loads = _loads(search, experiment)
    kinds = search.kinds(loads[0].case.precision)
    asked = Asked(loads, kinds.hardware, counts(search.gpus_max), search.objectives)
    if search.out is not None:
        write_tables({}, "arrow", search.out)  # is there a folder to write to?
    found = Selections(asked, kinds.left_out, tuple(selections(asked)))
    out.show(lambda: as_data(found), lambda console: render(found, console))
    if search.out is not None:
        for path in _written(found, search.out):
            out.notes().print(f"written: {path}", highlight=False, soft_wrap=True)


def _written(found: Selections, folder: Path) -> list[Path]:
    """The tables and the page of a matrix, in `folder`. Raises UserError where it cannot be
    written."""
    from orchestrator.predict.crossover import CROSSINGS, PAIRS, crossing, crossover
    from orchestrator.predict.matrix import SELECTIONS
    from orchestrator.report import html
    from orchestrator.report.output import inline_json
    from orchestrator.report.predicted.selection_page import data_of, layouts_of, texts_of
    from orchestrator.store.export import write_tables

    crossings = [
        (load, crossover(replace(load.case, hardware=kind), pair, draw=True))
        for load in found.asked.loads
        for kind in found.asked.hardware
        for pair in PAIRS
    ]
    rows = [crossing(load.model, load.scenario, one) for load, one in crossings]
    tables = {SELECTIONS.name: SELECTIONS.make(found.rows), CROSSINGS.name: CROSSINGS.make(rows)}
    written = write_tables(tables, "arrow", folder)
    data = inline_json(data_of(found, crossings, html.planned_looks))
    page = folder / "selection.html"
    text = html.drawn("selection", layouts_of(found), **texts_of(found), data=data)
    html.write(text, page, "--out")
    return [*written, page]


def _loads(search: Search, experiment: Experiment) -> tuple[Load, ...]:
    """Each model under each scenario."""
    from orchestrator.errors import UserError
    from orchestrator.predict.matrix import Load

    names = names_in(search.model)
    if not names:
        raise UserError("--model names no model; give one, as llama-70b, or leave it out")
    (first,) = search.kinds(precision_of(experiment, names[0])).hardware[:1]
    return tuple(
        Load(name, scenario.name, case_of(experiment, name, number, first))
        for number, scenario in enumerate(experiment.scenarios)
        for name in dict.fromkeys(names)
    )


def _single(experiment: Experiment, *names: str) -> None:
    """Raise UserError where more than one value is asked for. names: of options; none: all."""
    from orchestrator.errors import UserError

    several = {
        "--concurrency": experiment.max_concurrency,
        "--engine": experiment.engine,
        "--scenario": experiment.scenarios,
    }
    for name, values in several.items():
        if len(values) > 1 and (name in names or not names):
            raise UserError(f"{name} has {len(values)} values; this is answered for one of them")
