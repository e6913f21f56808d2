"""Which hardware and layout to take, of GPUs that need not be here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.commands.predicting import asked_of
from orchestrator.options.given import given
from orchestrator.report.output import Output

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.predict.hardware import Hardware
    from orchestrator.predict.kinds import Kinds
    from orchestrator.predict.layouts import Case
    from strategies.precision import Precision


def recommend(options: dict[str, Any], out: Output) -> None:
    """Print the smallest and the cheapest hardware and layout that meet objectives. Raises
    UserError for what is no such question."""
    from orchestrator.errors import UserError
    from orchestrator.predict import recommend as search
    from orchestrator.predict.kinds import counts, prices
    from orchestrator.predict.objectives import parsed
    from orchestrator.report.predicted.recommendation import Answer, as_data, render

    objectives = parsed(options.pop("slo"))
    if not objectives:
        raise UserError("a recommendation meets limits; give --slo, as in ttft:2000 tpot:50")
    numbers, stated = counts(options.pop("gpus_max")), options.pop("gpu_hour_cost")
    experiment, found = asked(options)
    _single(experiment)
    case = case_of(experiment, experiment.model, 0, found.hardware[0])
    paid = prices(stated, found.hardware)
    wanted = search.Wanted(case, objectives, found.hardware, numbers, paid)
    scenario = experiment.scenarios[0].name
    answer = Answer(experiment.model, scenario, found.left_out, search.recommend(wanted))
    out.show(lambda: as_data(answer), lambda console: render(answer, console))


def asked(options: dict[str, Any]) -> tuple[Experiment, Kinds]:
    """The load and the kinds of GPU that options name."""
    from orchestrator.config import load_experiment
    from orchestrator.predict.kinds import kinds

    names = [name.strip() for text in options.pop("gpu") for name in text.split(",")]
    node = options.pop("gpus_per_node"), options.pop("network")
    experiment = load_experiment(None, given(**options))
    return experiment, kinds(names, _precision(experiment, experiment.model), *node)


def case_of(experiment: Experiment, model: str, scenario: int, hardware: Hardware) -> Case:
    """What layouts are compared for: one scenario of a model, on one kind of GPU."""
    from orchestrator.plan import models
    from orchestrator.predict import factors
    from orchestrator.predict.layouts import Case

    fitted = factors.load().of((experiment.engine or ("torch",))[0])
    load = asked_of(experiment, scenario, fitted)
    shape = models.resolve(model, "dummy").shape
    return Case(shape, _precision(experiment, model), hardware, fitted, load)


def _precision(experiment: Experiment, model: str) -> Precision:
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
