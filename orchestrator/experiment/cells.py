"""What an experiment is made of: deployments, their cells and runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.experiment.lengths import Lengths

PRESETS = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Lengths in tokens; 0 where they differ or a dataset brings its own. mixed: of prompts and of
    outputs, where either differs."""

    name: str
    input_len: int
    output_len: int
    mixed: tuple[Lengths, Lengths] | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """Model x strategy x engine x dtype x quantization: loaded and captured once. quantization:
    what of weights and KV is FP8, `Precision.name`."""

    model: str
    strategy: str
    engine: str
    dtype: str
    quantization: str = "none"
    ablation: str = "none"

    @property
    def layout(self) -> str:
        """The strategy, and what was left out of it: "tp2 without comm"."""
        return layout_name(self.strategy, self.ablation)

    @property
    def name(self) -> str:
        """Names the deployment in files and tables: "tiny.tp2.torch.float32"."""
        parts = (self.model, self.strategy, self.engine, self.dtype, self.quantization)
        how = "with" if "=" in self.ablation else "without"
        without = [] if self.ablation == "none" else [f"{how}-{self.ablation}"]
        return ".".join([*(part for part in parts if part != "none"), *without])


@dataclass(frozen=True, slots=True)
class Cell:
    """Deployment x scenario x concurrency."""

    deployment: Deployment
    scenario: Scenario
    max_concurrency: int

    @property
    def name(self) -> str:
        """The name of the deployment, then of the load: "....short.c8"."""
        return f"{self.deployment.name}.{self.load}"

    @property
    def load(self) -> str:
        """Scenario and concurrency, "short.c8": what cells of one experiment are compared at."""
        return f"{self.scenario.name}.c{self.max_concurrency}"


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of a cell, inside one of its starts."""

    cell: Cell
    start: int
    index: int

    @property
    def name(self) -> str:
        """The name of the cell, then the numbers of start and run: "....c8.s0.r1"."""
        return f"{self.cell.name}.s{self.start}.r{self.index}"


def layout_name(strategy: str, ablation: str | None) -> str:
    """`strategy`, told apart from the same without collectives or links, or with a change, as in
    "dp2 with checkpointing full"."""
    if ablation is not None and "=" in ablation:
        return f"{strategy} with {ablation.replace('=', ' ')}"
    return strategy if ablation in (None, "none") else f"{strategy} without {ablation}"


def preset_names() -> list[str]:
    """Presets: a config alone (`NAME.json`) or a whole checkpoint (`NAME/`). A folder of the same
    name elsewhere is not meant by it."""
    return sorted(path.stem for path in PRESETS.glob("*.json")) + sorted(
        path.parent.name for path in PRESETS.glob("*/config.json")
    )
