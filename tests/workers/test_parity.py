"""Checkpoints as people have them: under every layout the tokens of Transformers' own `generate`,
or a refusal that names the field."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from checkpoints import CASES, Case, write
from ranks import Pool, engine_plan, plain, tokens

from orchestrator.errors import Refused
from orchestrator.plan import models
from strategies.shapes import ModelShape
from workers import engines
from workers.messages import EnginePlan, Request, Work

SERVED = [("torch", layout) for layout in ("tp1", "tp2", "pp2", "tp2pp2")]
if importlib.util.find_spec("deepspeed"):
    SERVED.append(("deepspeed", "tp2"))
READABLE = [case for case in CASES if not case.refused]
LEAST = 34  # checkpoints that run
# (engine, checkpoint) -> what the engine says that it cannot do
LACKS = {("deepspeed", "llama-one-kv-head"): "KV head"}
Outcome = dict[int, list[int]] | str  # tokens by request, or a refusal


def work_of(case: Case) -> Work:
    """Prompts shorter and longer than a page, than a chunk of the prefill, and than the windows and
    the lengths that rope was stretched from."""
    prompts = [tuple((7 * i + 11 * n) % 120 + 8 for i in range(n)) for n in (3, 18, 41)]
    requests = (Request(i, prompt, 7 - i) for i, prompt in enumerate(prompts))
    return Work(tuple(requests), max_concurrency=2, ignore_eos=not case.stops)


@dataclass
class Outcomes:
    """What became of each checkpoint.

    shapes, expected: of those that can be read, the tokens of `generate`. refused: why the others
    cannot. served: by engine and layout, then by checkpoint; made when it is asked for.
    """

    pool: Pool
    root: Path
    shapes: dict[str, ModelShape] = field(default_factory=dict)
    expected: dict[str, Outcome] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    served: dict[tuple[str, str], dict[str, Outcome]] = field(default_factory=dict)

    def read(self, case: Case) -> None:
        """Write it, read it, and have Transformers serve it."""
        folder = write(case, self.root / case.name)
        try:
            self.shapes[case.name] = models.resolve(str(folder)).shape
        except Refused as refusal:
            self.refused[case.name] = str(refusal)
        else:
            self.expected[case.name] = plain(folder, work_of(case))

    def of(self, engine: str, layout: str) -> dict[str, Outcome]:
        """Of each checkpoint the tokens, or why it is not run. The ranks meet once for all."""
        if (engine, layout) not in self.served:
            self.served[engine, layout] = self._serve(engine, layout)
        return self.served[engine, layout]

    def _serve(self, engine: str, layout: str) -> dict[str, Outcome]:
        said, jobs = {}, {}
        for case in (case for case in CASES if case.name in self.shapes):
            work, shape = work_of(case), self.shapes[case.name]
            plan = engine_plan(layout, shape, self.root / case.name, work)
            reason = engines.create(engine).supports(plan)
            if reason is None:
                jobs[case.name] = (plan, work)
            else:
                said[case.name] = reason
        return said | serve(self.pool, engine, jobs)


@pytest.fixture(scope="module")
def outcomes(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    found = Outcomes(pool, tmp_path_factory.mktemp("parity"))
    for case in CASES:
        found.read(case)
    return found


def serve(pool: Pool, engine: str, jobs: dict[str, tuple[EnginePlan, Work]]) -> dict[str, Outcome]:
    """The tokens of each job, or what went wrong."""
    if engine == "torch":
        reports = pool.serve_many(list(jobs.values()))
        return {
            name: one if isinstance(one, str) else tokens(one)
            for name, one in zip(jobs, reports, strict=True)
        }
    # DeepSpeed leaves its process groups when it closes.
    return {
        name: tokens(pool.serve(plan, work, engine=engine)[0])
        for name, (plan, work) in jobs.items()
    }


@pytest.mark.parametrize(("engine", "layout"), SERVED)
@pytest.mark.parametrize("case", READABLE, ids=lambda case: case.name)
def test_tokens_are_those_of_generate_or_the_engine_says_what_it_lacks(
    case: Case, engine: str, layout: str, outcomes: Outcomes
) -> None:
    assert outcomes.refused.get(case.name) is None
    served = outcomes.of(engine, layout)[case.name]
    if (engine, case.name) in LACKS:
        assert LACKS[engine, case.name] in served
    else:
        assert served == outcomes.expected[case.name]


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda c: c.name)
def test_what_is_not_run_is_refused_by_its_name(case: Case, outcomes: Outcomes) -> None:
    said = outcomes.refused[case.name]
    assert str(case.refused) in said
    assert "\n" not in said


def test_most_checkpoints_run_under_every_layout(outcomes: Outcomes) -> None:
    for engine, layout in SERVED:
        run = [one for one in READABLE if (engine, one.name) not in LACKS]
        equal = [
            outcomes.of(engine, layout)[one.name] == outcomes.expected[one.name] for one in run
        ]
        assert sum(equal) >= LEAST, (engine, layout)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("llama", "llama-llama3"),
        ("llama", "llama-llama3-old"),
        ("llama", "llama-linear"),
        ("llama-linear", "llama-linear-old"),
        ("llama", "llama-yarn"),
        ("llama-yarn", "llama-yarn-factors"),
        ("llama", "llama-theta-at-the-top"),
        ("llama", "llama-ends-in-config"),
        ("llama-tied-equal-head", "llama-tied-own-head"),
        ("mistral-window", "mistral-window-of-its-class"),
        ("qwen2", "qwen2-yarn-beside"),
        ("qwen2-window-not-used", "qwen2-window-in-some-layers"),
        ("qwen2-window-in-some-layers", "qwen2-layer-types"),
    ],
)
def test_what_a_checkpoint_is_here_for_changes_its_tokens(
    one: str, other: str, outcomes: Outcomes
) -> None:
    """Else an engine that ignores it would pass. The weights of the two are the same."""
    assert outcomes.expected[one] != outcomes.expected[other]
