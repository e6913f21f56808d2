"""Which hardware and layout to take, of GPUs that need not be here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from orchestrator.commands.predicting import asked_of
from orchestrator.report.output import Output

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.predict.hardware import Hardware
    from orchestrator.predict.kinds import Kinds
    from orchestrator.predict.layouts import Case
    from orchestrator.predict.objectives import Objective
    from strategies.precision import Precision


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked through, and for what. gpus, prices: as they were written; no gpus: every kind
    of which enough is known."""

    slo: tuple[str, ...]
    gpu: tuple[str, ...]
    gpus_max: int
    gpus_per_node: int | None
    network: float | None
    gpu_hour_cost: tuple[str, ...] = ()

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

        names = [word for text in self.gpu for name in text.split(",") if (word := name.strip())]
        if self.gpu and not names:
            raise UserError("--gpu names no kind of GPU; give one, as h200, or leave it out")
        return kinds(names, precision, self.gpus_per_node, self.network)


def search_of(options: dict[str, Any]) -> Search:
    """What is to be looked for, taken out of the options."""
    known = (one.name for one in fields(Search))
    return Search(**{name: options.pop(name) for name in known if name in options})


def recommend(search: Search, experiment: Experiment, out: Output) -> None:
    """Print the smallest and the cheapest hardware and layout that meet objectives. Raises
    UserError for what is no such question."""
    from orchestrator.errors import UserError
    from orchestrator.predict.kinds import counts, prices
    from orchestrator.predict.recommend import Wanted, recommend
    from orchestrator.report.predicted.recommendation import Answer, as_data, render

    objectives = search.objectives
    if not objectives:
        raise UserError("a recommendation meets limits; give --slo, as in ttft:2000 tpot:50")
    _single(experiment)
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
    load = asked_of(experiment, scenario, fitted)
    shape = models.resolve(model, "dummy").shape
    return Case(shape, precision_of(experiment, model), hardware, fitted, load)


def precision_of(experiment: Experiment, model: str) -> Precision:
    """In what a model is kept."""
    from orchestrator.plan import models, precision

    return precision.resolve(experiment, models.resolve(model, "dummy").shape, "cuda")


def _single(experiment: Experiment) -> None:
    """Raise UserError where more than one load is asked for."""
    from orchestrator.errors import UserError

    several = {
        "--concurrency": experiment.max_concurrency,
        "--engine": experiment.engine,
        "--scenario": experiment.scenarios,
    }
    for name, values in several.items():
        if len(values) > 1:
            raise UserError(f"{name} has {len(values)} values; this is answered for one of them")
