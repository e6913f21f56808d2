"""What a claim is: a figure, and the deployment that is said to reach it. A YAML file and the text
of `--claim` fill the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.config import read_yaml, shown_value
from orchestrator.errors import UserError
from orchestrator.experiment import SCENARIOS
from workers.units import significant

Tokens = Annotated[int, Field(gt=0, le=10_000_000, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Percent = Annotated[float, Field(ge=0, le=100)]
Bits = Annotated[float, Field(ge=1, le=32)]
BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "fp8": 8.0}
EXAMPLE = "claims: [{model: llama-70b, gpu: H200, strategy: tp4, output_throughput: 68.2}]"
MOST_CLAIMS = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of figure. says: how it is written behind the number. needs: what would be needed to
    judge it; "" where arithmetic can."""

    says: str
    needs: str = ""


RUNS = Kind("that it runs")
KINDS = {
    "output_throughput": Kind("tok/s in all"),
    "per_request_throughput": Kind("tok/s a request"),
    "ttft_ms": Kind("ms to the first token"),
    "tpot_ms": Kind("ms a token"),
    "memory_gb": Kind("GB of memory a GPU"),
    "comm_pct": Kind(
        "% communication",
        "the time of a step and that of its collectives, measured: a slow step has a small share",
    ),
    "speedup": Kind("x", "the baseline, and both of its figures in tok/s, ms or GB"),
    "change_pct": Kind("% change", "the baseline, and both of its figures in tok/s, ms or GB"),
    "utilization_pct": Kind(
        "% GPU utilisation",
        "what is meant by it: NVML's share of time in which any kernel runs says nothing of speed; "
        "tok/s would",
    ),
    "best_concurrency": Kind(
        "concurrent, the best", "what it is best by, and that figure at the levels beside it"
    ),
}


class Claim(BaseModel):
    """One figure at most, and what is said of the deployment that reaches it. What is not said is
    taken in the claim's favour. Without a figure: that the deployment runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = None
    gpu: tuple[str, ...] = ()  # several are candidates, of which the most generous counts
    gpus: int | None = Field(None, gt=0, le=4096, strict=True)
    strategy: str | None = None  # without it every layout of `gpus` is a candidate
    dtype: Literal["bfloat16", "float16", "float32", "fp8"] = "bfloat16"
    bits: Bits | None = None  # of a weight; as dtype
    kv_bits: Bits | None = None  # of an element of a key or a value; as weights, 8 or more
    concurrency: int | None = Field(None, gt=0, le=65536, strict=True)
    scenario: str | None = None
    input_len: Tokens | None = None
    output_len: Tokens | None = None
    prefix_hits: float = Field(0.0, ge=0.0, lt=1.0)  # share of prompt tokens found in a cache
    tokens_per_pass: float = Field(1.0, ge=1, le=1000)  # above 1: tokens are guessed and verified

    output_throughput: Positive | None = None
    per_request_throughput: Positive | None = None
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    memory_gb: Positive | None = None
    comm_pct: Percent | None = None
    speedup: Positive | None = None
    change_pct: float | None = Field(None, ge=-1e6, le=1e6)
    utilization_pct: Percent | None = None
    best_concurrency: int | None = Field(None, gt=0, le=65536, strict=True)

    source: str = ""
    quote: str = ""

    @field_validator("gpu", mode="before")
    @classmethod
    def _as_names(cls, value: Any) -> Any:
        """One name stands for a list of one; a comma separates several."""
        items = value if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(item, str) for item in items):
            return value
        return tuple(one.strip() for item in items for one in item.split(",") if one.strip())

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two claims; make an entry of each")
        if self.scenario is not None and self.scenario not in SCENARIOS:
            raise ValueError(f"there is no scenario '{self.scenario}'; use {', '.join(SCENARIOS)}")
        if self.scenario and (self.input_len or self.output_len):
            raise ValueError("scenario and input_len/output_len say the lengths twice")
        if bool(self.input_len) != bool(self.output_len):
            raise ValueError("input_len and output_len go together; give both")
        if self.prefix_hits and self.lengths is None:
            raise ValueError("prefix_hits is a share of the prompt; give input_len or scenario too")
        if self.ttft_ms and self.lengths is None:
            raise ValueError("ttft_ms depends on the prompt; give input_len or scenario too")
        if self.dtype == "fp8" and self.bits:
            raise ValueError(f"fp8 and {self.bits:g} bits say the bits of a weight twice; say one")
        missing = [name for name in ("model", "gpu") if not getattr(self, name)]
        if missing and not self.kind.needs:
            options = " and ".join(f"--{name}" for name in missing)
            raise ValueError(
                f"nothing is judged without {' and '.join(missing)}; give {options}, or a file of "
                "claims that says it"
            )
        return self

    @property
    def figure(self) -> tuple[str, float] | None:
        """The field of the figure and its value; None where there is none."""
        found = ((name, getattr(self, name)) for name in KINDS)
        return next(((name, float(value)) for name, value in found if value is not None), None)

    @property
    def kind(self) -> Kind:
        """Of its figure."""
        return RUNS if self.figure is None else KINDS[self.figure[0]]

    @property
    def said(self) -> str:
        """The figure as people write it: 68.2 tok/s in all."""
        kind, figure = self.kind, self.figure
        if figure is None:
            return kind.says
        sign = "+" if figure[0] == "change_pct" and figure[1] > 0 else ""
        return f"{sign}{significant(figure[1], 6)}{'' if kind.says[0] in '%x' else ' '}{kind.says}"

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Tokens in and out of a request; None where they are not said."""
        if self.scenario:
            return SCENARIOS[self.scenario]
        return (self.input_len, self.output_len) if self.input_len and self.output_len else None

    @property
    def compute_dtype(self) -> str:
        """Of activations."""
        return "bfloat16" if self.dtype == "fp8" else self.dtype

    @property
    def weight_bits(self) -> float:
        """Bits of a weight."""
        return self.bits or BITS[self.dtype]

    @property
    def cache_bits(self) -> float:
        """Bits of an element of a key or a value."""
        return self.kv_bits or min(BITS[self.dtype], max(self.weight_bits, 8.0))


def claim_of(fields: Mapping[str, Any], where: str) -> Claim:
    """The claim of these fields. where: what an error begins with. Raises UserError."""
    try:
        return Claim(**fields)
    except ValidationError as error:
        raise UserError(f"{where}: {_wrong(error)}") from error


def load_claims(path: Path, defaults: Mapping[str, Any]) -> list[Claim]:
    """The claims of a YAML file: a list under `claims`; other fields hold for each claim that does
    not say otherwise, and `defaults` where the file does not. Raises UserError."""
    fields = read_yaml(path, EXAMPLE)
    entries = fields.pop("claims", None)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: there is no list of claims; write one, as in '{EXAMPLE}'")
    if len(entries) > MOST_CLAIMS:
        raise UserError(f"{path}: {len(entries)} claims are more than {MOST_CLAIMS}; cut the file")
    return [
        _entry(entry, {**defaults, **fields}, f"{path}, claim {number}")
        for number, entry in enumerate(entries, 1)
    ]


def _entry(entry: object, shared: Mapping[str, Any], where: str) -> Claim:
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise UserError(
            f"{where}: expected fields and their values, as in '{EXAMPLE}'; found "
            f"{shown_value(entry)}"
        )
    # What an entry says of lengths stands for all that is said of them.
    lengths = ("scenario", "input_len", "output_len")
    if any(name in entry for name in lengths):
        shared = {name: value for name, value in shared.items() if name not in lengths}
    return claim_of({**shared, **entry}, where)


def _wrong(error: ValidationError) -> str:
    """The first thing wrong, in one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        known = ", ".join(Claim.model_fields)
        return f"there is no field {shown_value(field)}; a claim has {known}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    return f"{field}: {message[0].lower()}{message[1:]}, found {shown_value(first['input'])}"
