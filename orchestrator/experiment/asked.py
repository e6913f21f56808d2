"""What was asked. A YAML file and the flags fill the same fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from orchestrator.experiment.cells import Scenario
from orchestrator.experiment.lengths import Duration, Lengths, Window
from orchestrator.experiment.levels import FORMS, check_levels, parse_levels
from orchestrator.experiment.pairs import once
from orchestrator.experiment.places import ResultDir
from orchestrator.experiment.techniques import ON_OR_OFF, Techniques
from orchestrator.experiment.training import TrainingFields

DIFFERENCE = 0.02  # the smallest difference between layouts that matters, unless it is said
SCENARIOS = {"short": (256, 128), "long": (1024, 512)}

Tokens = Annotated[int, Field(gt=0, le=10_000_000)]
Count = Annotated[int, Field(gt=0, le=10_000)]
# Fields that mean nothing without a dataset.
OF_DATASET = (
    *("dataset_split", "dataset_format", "dataset_columns", "multi_turn", "skip_invalid"),
    *("trace_speed", "trace_window"),
)
# Fields -> what others are about that mean nothing without one of them.
NEEDED = {
    ("dataset_path",): ("a dataset", OF_DATASET[1:]),
    ("dataset_path", "data"): ("a folder with splits", OF_DATASET[:1]),
    ("request_rate", "find_rate"): ("the gaps between arrivals", ("burstiness",)),
    ("until_ci",): ("starts that are added", ("max_starts",)),
    ("find_rate",): ("a search of rates", ("rate_runs",)),
}
LONGEST_S = 1e6  # 12 days; a wait that is much longer overflows in the libraries below


class Experiment(TrainingFields):
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
    # tokens; or a distribution, "256:1024" or "normal(512,128)"
    input_len: int | str | None = None
    output_len: int | str | None = None
    # lengths are uniform from (1 - ratio) to (1 + ratio) of what was asked
    range_ratio: float = Field(0.0, ge=0.0, lt=1.0)
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
    ignore_eos: bool | None = None  # None: false for a dataset that has texts, else true
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # of weights (auto: as they are stored), of the KV cache (auto: dtype), and where phases differ
    quantization: Literal["auto", "none", "fp8"] = "auto"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    precision_policy: Literal["uniform", "fp8-prefill", "fp8-decode"] = "uniform"
    load_format: Literal["auto", "dummy"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dataset_path: Path | None = None
    dataset_format: str = "auto"
    # field -> the column of the dataset that holds it; other columns are not read
    dataset_columns: dict[str, str] = Field(default_factory=dict)
    dataset_split: str | None = None  # of a folder
    multi_turn: bool = False  # whole conversations; num_prompts and request_rate count these
    skip_invalid: bool = False  # leave out rows that cannot run, instead of refusing the dataset
    # of a dataset with times of arrival: how much faster, and which part, as "60s" or "10m:11m"
    trace_speed: float = Field(1.0, ge=1e-6, le=1e6)
    trace_window: str | None = None
    save_detailed: bool = False
    save_spans: bool = False  # of the first start's observed runs, every span instead of a few
    # most prompt tokens in one forward pass, to which prompts are cut; "off": they go whole
    chunked_prefill_size: Tokens | Literal["off"] | None = None
    attention: str = "auto"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    fusion: Literal["auto", "on", "off"] = "auto"
    batching: Literal["auto", "continuous", "static"] = "auto"
    allreduce: str = "auto"
    overlap: Literal["auto", "on", "off"] = "auto"
    products: Literal["auto", "triton", "cublas"] = "auto"
    pdl: Literal["auto", "on", "off"] = "auto"
    # run layouts again without collectives, or without peer-to-peer links
    ablate: tuple[Literal["comm", "p2p"], ...] = ()
    # run layouts again without each of these, and say what each one does
    technique: Techniques = ()
    nsys: bool = False  # workers run under Nsight Systems, which slows them
    ncu: bool = False  # kernels are counted by Nsight Compute, after the runs
    # service levels in ms: ttft, tpot, e2el
    goodput: dict[str, float] = Field(default_factory=dict)
    # limits in ms on percentiles of a run: "ttft:p99"
    slo: dict[str, float] = Field(default_factory=dict)
    # search the highest request rate that meets the slo, by at most so many rates of each cell
    find_rate: bool = False
    rate_runs: int = Field(8, ge=1, le=100)
    timeout: float = Field(600.0, gt=0.0, le=LONGEST_S)
    wait_for_resources: Duration = Field(0.0, le=LONGEST_S)
    on_node_loss: Literal["retry", "skip"] = "skip"  # of a run that loses a node
    result_dir: ResultDir | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    address: str | None = None
    fabric: Path | None = None  # of `orchestrator calibrate`; None: that of this host, if any
    allow_other_node: bool = False  # add runs of other GPUs, or of another CPU

    @field_validator("temperature")
    @classmethod
    def _no_tiny_temperature(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise ValueError(f"temperature {value:g} makes logits overflow; use 0, which is greedy")
        return value

    @field_validator("input_len", "output_len", mode="before")
    @classmethod
    def _as_length(cls, value: Any, info: ValidationInfo) -> Any:
        """A number stays one, a distribution its text."""
        if value is None:
            return None
        try:
            lengths = Lengths.parse(value)
        except ValueError as error:
            raise ValueError(f"{info.field_name}: {error}") from error
        return lengths.fixed or str(value).replace(" ", "")

    @field_validator("trace_window")
    @classmethod
    def _known_window(cls, value: str | None) -> str | None:
        if value is not None:
            Window.parse(value)
        return value

    @field_validator("dataset_columns", mode="before")
    @classmethod
    def _as_columns(cls, value: Any) -> Any:
        """`prompt=question,output_len=max_tokens` stands for a mapping."""
        if isinstance(value, dict):
            return value
        texts = value if isinstance(value, (list, tuple)) else (value,)
        pairs = [part.split("=", 1) for text in texts for part in str(text).split(",")]
        if not all(len(pair) == 2 and all(pair) for pair in pairs):
            raise ValueError(
                "dataset_columns is FIELD=COLUMN, as in prompt=question,output_len=max_tokens"
            )
        return once("dataset_columns", ((key.strip(), column.strip()) for key, column in pairs))

    @field_validator("chunked_prefill_size", *ON_OR_OFF, mode="before")
    @classmethod
    def _as_on_or_off(cls, value: Any) -> Any:
        """YAML reads `on` and `off` as truth values."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator(
        *("strategy", "engine", "scenario", "max_concurrency", "ablate", "technique"), mode="before"
    )
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

    @field_validator("strategy", "engine", "scenario", "max_concurrency", "technique")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """A value that is given twice is kept once."""
        return tuple(dict.fromkeys(values))

    @field_validator("scenario")
    @classmethod
    def _known_scenario(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SCENARIOS:
                known = f"{', '.join(SCENARIOS)}, or input_len and output_len"
                raise ValueError(f"there is no scenario '{name}'; use {known}")
        return names

    @field_validator("engine_arg", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """A value that YAML has read, as true or a mapping, stands for its JSON."""
        if not isinstance(value, dict):
            return value
        return {key: one if isinstance(one, str) else json.dumps(one) for key, one in value.items()}

    @field_validator("goodput", "slo", mode="before")
    @classmethod
    def _as_levels(cls, value: Any, info: ValidationInfo) -> Any:
        """`ttft:2000 tpot:200`, in one text or several, stands for a mapping."""
        if isinstance(value, dict):
            return value
        field = str(info.field_name)
        texts = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(text, (dict, list, tuple)) for text in texts):
            raise ValueError(f"{field} is {FORMS[field]}")
        return parse_levels(texts, field)

    @field_validator("goodput", "slo")
    @classmethod
    def _known_levels(cls, levels: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        return check_levels(levels, str(info.field_name))

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Experiment:
        if self.scenario and (self.input_len or self.output_len):
            raise ValueError("scenario and input_len/output_len say the lengths twice; give one")
        if self.dataset_path and (self.scenario or self.input_len):
            raise ValueError("a dataset brings its own prompts; leave scenario and input_len out")
        if self.dataset_path and (isinstance(self.output_len, str) or self.range_ratio):
            raise ValueError(
                "a dataset brings its own lengths; output_len is one number there, and range_ratio "
                "is left out"
            )
        if bool(self.input_len) != bool(self.output_len) and not self.dataset_path:
            raise ValueError("input_len and output_len go together; give both")
        if self.range_ratio and any(isinstance(one, str) for one in self._asked_lengths):
            raise ValueError("range_ratio widens lengths that are numbers; give one of the two")
        return self

    @model_validator(mode="after")
    def _have_an_effect(self) -> Experiment:
        for needed, (what, names) in NEEDED.items():
            for name in () if any(getattr(self, one) for one in needed) else names:
                default = type(self).model_fields[name].get_default(call_default_factory=True)
                if getattr(self, name) != default:
                    raise ValueError(f"{name} is about {what}; give {' or '.join(needed)} too")
        return self

    @model_validator(mode="after")
    def _one_source_of_counts(self) -> Experiment:
        if self.min_duration is None:
            return self
        for name in ("num_prompts", "request_rate", "dataset_path"):
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

    @model_validator(mode="after")
    def _search_of_a_rate(self) -> Experiment:
        if not self.find_rate:
            return self
        if not self.slo:
            raise ValueError("find_rate searches the rate that meets an slo; give slo too")
        if self.num_prompts is None and self.dataset_path is None:
            raise ValueError(
                "find_rate needs to know how many requests a run has; give num_prompts"
            )
        for name in ("request_rate", "min_duration", "until_ci", "ablate", "technique", "nsys"):
            if getattr(self, name):
                raise ValueError(f"find_rate chooses the runs itself; leave {name} out")
        return self

    @property
    def levels(self) -> dict[str, float]:
        """Every service level in ms: of each request, and of percentiles."""
        return {**self.goodput, **self.slo}

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The lengths to be run; a dataset is one scenario, named after its file."""
        if path := self.dataset_path:
            named = path.with_suffix("") if path.suffix.lower() == ".gz" else path
            return (Scenario(named.stem, 0, 0),)
        if self.input_len and self.output_len:
            inputs, outputs = map(Lengths.parse, self._asked_lengths)
            return (self._scenario(f"{inputs.name}x{outputs.name}", inputs, outputs),)
        return tuple(
            self._scenario(name, *map(Lengths.parse, SCENARIOS[name]))
            for name in self.scenario or ("short",)
        )

    def _scenario(self, name: str, inputs: Lengths, outputs: Lengths) -> Scenario:
        if ratio := self.range_ratio:
            inputs, outputs = (Lengths.around(one.fixed, ratio) for one in (inputs, outputs))
        if inputs.fixed and outputs.fixed:
            return Scenario(name, inputs.fixed, outputs.fixed)
        return Scenario(name, inputs.fixed, outputs.fixed, (inputs, outputs))

    @property
    def _asked_lengths(self) -> tuple[int | str, ...]:
        return tuple(one for one in (self.input_len, self.output_len) if one is not None)

    @property
    def start_limit(self) -> int:
        """Most starts that a cell can get."""
        return max(self.num_starts, self.max_starts) if self.until_ci else self.num_starts
