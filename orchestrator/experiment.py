"""What was asked: an experiment, its deployments, their cells and runs. A YAML file and the flags
fill the same fields."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LEVELS = ("ttft", "tpot", "e2el")  # latencies that --goodput may limit
DIFFERENCE = 0.02  # the smallest difference between layouts that matters, unless it is said
SCENARIOS = {"short": (256, 128), "long": (1024, 512)}
PRESETS = Path(__file__).parent / "presets"


Tokens = Annotated[int, Field(gt=0, le=10_000_000)]
Count = Annotated[int, Field(gt=0, le=10_000)]
LONGEST_S = 1e6  # 12 days; a wait that is much longer overflows in the libraries below


class Experiment(BaseModel):
    """Every field of `orchestrator submit`; a YAML file holds the same names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    strategy: tuple[str, ...] = Field(("tp1",), min_length=1)
    model: str = "tiny"
    engine: tuple[str, ...] = ()  # empty: torch, or what a layout needs
    # settings of the engine's own, as texts; those of an engine that takes some
    engine_arg: dict[str, str] = Field(default_factory=dict)
    scenario: tuple[str, ...] = ()
    input_len: Tokens | None = None
    output_len: Tokens | None = None
    max_concurrency: tuple[Annotated[int, Field(gt=0, le=65536)], ...] = Field((8,), min_length=1)
    # fresh groups of workers, in which layouts take turns, and runs of each cell inside one
    num_starts: Count = 1
    num_runs: Count = 1
    # starts are added until half the confidence interval is below this share of the mean
    until_ci: float | None = Field(None, gt=0.0, lt=1.0)
    max_starts: Count = 10  # the most starts that until_ci may reach
    num_warmups: int = Field(3, ge=0, le=10_000)
    # the smallest difference between layouts that matters, as a share
    difference: float = Field(DIFFERENCE, gt=0.0, lt=1.0)
    num_prompts: int | None = Field(None, gt=0, le=1_000_000)
    # seconds that a run lasts at least: a pilot settles num_prompts, alike for all layouts
    min_duration: float | None = Field(None, gt=0.0, le=LONGEST_S)
    # requests/s of an open loop; None: a closed loop
    request_rate: float | None = Field(None, ge=1e-6, le=1e6)
    # shape of the gamma distribution of the gaps; 1 is a Poisson process
    burstiness: float = Field(1.0, ge=1e-3, le=1e6)
    seed: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool | None = None  # None: true where lengths are fixed, false for a dataset
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dataset_path: Path | None = None
    save_detailed: bool = False
    save_spans: bool = False  # of the first start's observed runs, every span instead of a few
    prefill_tokens: Tokens | None = None
    chunked_prefill: bool = True
    # run layouts again without collectives, or without peer-to-peer links
    ablate: tuple[Literal["comm", "p2p"], ...] = ()
    nsys: bool = False  # workers run under Nsight Systems, which slows them
    # service levels in ms: ttft, tpot, e2el
    goodput: dict[str, float] = Field(default_factory=dict)
    timeout: float = Field(600.0, gt=0.0, le=LONGEST_S)
    result_dir: Path | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    address: str | None = None
    # a file that `orchestrator calibrate` wrote; None: that of this host, if there is one
    fabric: Path | None = None
    # add runs of other GPUs, or of another CPU, to results that are there
    allow_other_node: bool = False

    @field_validator("temperature")
    @classmethod
    def _no_tiny_temperature(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise ValueError(f"temperature {value:g} makes logits overflow; use 0, which is greedy")
        return value

    @field_validator("strategy", "engine", "scenario", "max_concurrency", "ablate", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """One value stands for a list of one; a comma separates several."""
        items: list[Any] = []
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, str):
                items.extend(part.strip() for part in item.split(",") if part.strip())
            else:
                items.append(item)
        return tuple(items)

    @field_validator("strategy", "engine", "scenario", "max_concurrency")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """A value that is given twice is kept once."""
        return tuple(dict.fromkeys(values))

    @field_validator("scenario")
    @classmethod
    def _known_scenario(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SCENARIOS:
                raise ValueError(
                    f"there is no scenario '{name}'; use {', '.join(SCENARIOS)}, or input_len and "
                    "output_len"
                )
        return names

    @field_validator("engine_arg", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """A value that YAML has read, as true or a mapping, stands for its JSON."""
        if not isinstance(value, dict):
            return value
        return {key: one if isinstance(one, str) else json.dumps(one) for key, one in value.items()}

    @field_validator("goodput", mode="before")
    @classmethod
    def _as_levels(cls, value: Any) -> Any:
        """`ttft:2000 tpot:200`, in one text or several, stands for a mapping."""
        if isinstance(value, dict):
            return value
        texts = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(text, (dict, list, tuple)) for text in texts):
            raise ValueError("goodput is METRIC:MILLISECONDS, as in ttft:2000 tpot:200")
        return parse_levels(texts)

    @field_validator("goodput")
    @classmethod
    def _known_levels(cls, levels: dict[str, float]) -> dict[str, float]:
        return check_levels(levels)

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Experiment:
        if self.scenario and (self.input_len or self.output_len):
            raise ValueError(
                "scenario and input_len/output_len say the lengths twice; give one of them"
            )
        if self.dataset_path and (self.scenario or self.input_len):
            raise ValueError("a dataset brings its own prompts; leave scenario and input_len out")
        if self.burstiness != 1.0 and self.request_rate is None:
            raise ValueError("burstiness is about the gaps between arrivals; give request_rate too")
        if bool(self.input_len) != bool(self.output_len) and not self.dataset_path:
            raise ValueError("input_len and output_len go together; give both")
        return self

    @model_validator(mode="after")
    def _one_source_of_counts(self) -> Experiment:
        beside = ("num_prompts", "request_rate", "dataset_path")
        if self.min_duration is None:
            return self
        for name in beside:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"min_duration settles how many requests a run has; leave {name} out"
                )
        if self.min_duration >= self.timeout:
            raise ValueError(
                f"a run of {self.min_duration:g} s (min_duration) would not end within the timeout "
                f"of {self.timeout:g} s; give a longer timeout"
            )
        return self

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The lengths to be run; a dataset is one scenario, named after its file."""
        if self.dataset_path:
            return (Scenario(self.dataset_path.stem, 0, self.output_len or 0),)
        if self.input_len and self.output_len:
            return (
                Scenario(f"{self.input_len}x{self.output_len}", self.input_len, self.output_len),
            )
        return tuple(Scenario(name, *SCENARIOS[name]) for name in self.scenario or ("short",))

    @property
    def start_limit(self) -> int:
        """Most starts that a cell can get."""
        return max(self.num_starts, self.max_starts) if self.until_ci else self.num_starts


@dataclass(frozen=True, slots=True)
class Scenario:
    """Lengths in tokens; 0 where a dataset brings its own."""

    name: str
    input_len: int
    output_len: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """Model x strategy x engine x dtype x quantization: loaded and captured once."""

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
        without = [] if self.ablation == "none" else [f"without-{self.ablation}"]
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
    """`strategy`, told apart from the same without collectives or links."""
    return strategy if ablation in (None, "none") else f"{strategy} without {ablation}"


def parse_levels(texts: Iterable[str]) -> dict[str, str]:
    """`ttft:2000 tpot:200` as a mapping, unchecked. Raises ValueError for a word that does not have
    the form KEY:VALUE."""
    words = [word for text in texts for word in str(text).replace(",", " ").split()]
    pairs = [word.partition(":") for word in words]
    for word, (key, separator, value) in zip(words, pairs, strict=True):
        if not (key and separator and value):
            raise ValueError(
                f"goodput is METRIC:MILLISECONDS, as in ttft:2000 tpot:200; found '{word}'"
            )
    return {key: value for key, _, value in pairs}


def check_levels(levels: dict[str, float]) -> dict[str, float]:
    """`levels`, if it names latencies that there are and times above 0 ms. Raises ValueError."""
    for name, limit in levels.items():
        if name not in LEVELS:
            raise ValueError(f"goodput has no metric '{name}'; use {', '.join(LEVELS)}")
        if not 0 < limit < float("inf"):
            raise ValueError(
                f"goodput {name}:{limit:g}: a service level is a number of milliseconds above 0"
            )
    return levels


def preset_names() -> list[str]:
    """Presets: a config alone (`NAME.json`) or a whole checkpoint (`NAME/`). A folder of the same
    name elsewhere is not meant by it."""
    return sorted(path.stem for path in PRESETS.glob("*.json")) + sorted(
        path.parent.name for path in PRESETS.glob("*/config.json")
    )
