"""A claim in words, as in `--claim "68.2 tok/s at tp4 bf16 concurrency 1"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.audit.claims import Claim, claim_of
from orchestrator.errors import UserError
from orchestrator.experiment import SCENARIOS

Fields = Mapping[str, Any]
MOST_SHOWN = 40  # characters of what is not understood
# With or without a comma between thousands.
NUMBER = r"([+-]?(?:\d{1,3}(?:,\d{3}){1,3}|\d{1,12})(?:\.\d{1,12})?)"
COUNT = r"(\d{1,3}(?:,\d{3}){1,2}|\d{1,9})"
DTYPES: Mapping[str, Fields] = {
    "bf16": {"dtype": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "float16": {"dtype": "float16"},
    "fp32": {"dtype": "float32"},
    "float32": {"dtype": "float32"},
    "fp8": {"dtype": "fp8"},
    "int8": {"bits": 8.0},
    "int4": {"bits": 4.0},
    "fp4": {"bits": 4.0},
}
FILLERS = re.compile(r"(?:[\s,;]|\b(?:at|with|under|in|on|and|of|a|an)\b)+")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a claim. pattern: what it looks like. fields: what it says, from its groups.
    example: for people."""

    pattern: re.Pattern[str]
    fields: Callable[[tuple[str, ...]], Fields]
    example: str


def _part(pattern: str, fields: Callable[[tuple[str, ...]], Fields], example: str) -> Part:
    return Part(re.compile(rf"{pattern}(?![\w.%/])", re.IGNORECASE), fields, example)


def _figure(pattern: str, field: str, example: str) -> Part:
    return _part(pattern, lambda found: {field: float(_plain(found[0]))}, example)


def _count(pattern: str, field: str, example: str) -> Part:
    return _part(pattern, lambda found: {field: int(_plain(found[0]))}, example)


def _plain(number: str) -> str:
    return number.replace(",", "")


# Those that begin alike stand with the longer one first.
PARTS = (
    _figure(
        rf"{NUMBER}\s*tok(?:ens)?/s(?:/(?:request|user)|\s+(?:per|a)\s+(?:request|user))",
        "per_request_throughput",
        "9.9 tok/s per request",
    ),
    _figure(rf"{NUMBER}\s*tok(?:ens)?/s", "output_throughput", "68.2 tok/s"),
    _figure(rf"ttft\s+{NUMBER}\s*ms", "ttft_ms", "ttft 200 ms"),
    _figure(rf"tpot\s+{NUMBER}\s*ms", "tpot_ms", "tpot 14.7 ms"),
    _figure(rf"{NUMBER}\s*GB", "memory_gb", "40 GB"),
    _figure(rf"{NUMBER}\s*%\s*communication", "comm_pct", "22% communication"),
    _figure(rf"{NUMBER}\s*%\s*utili[sz]ation", "utilization_pct", "75% utilisation"),
    _part(
        rf"{NUMBER}\s*%\s*prefix\s+hits",
        lambda found: {"prefix_hits": float(_plain(found[0])) / 100},
        "90% prefix hits",
    ),
    _figure(rf"{NUMBER}\s*x", "speedup", "2.3x"),
    _count(rf"concurrency\s+{COUNT}", "concurrency", "concurrency 1"),
    _count(rf"{COUNT}\s+concurrent", "concurrency", "1 concurrent"),
    _count(rf"{COUNT}\s+gpus?", "gpus", "4 gpus"),
    _part(
        rf"{COUNT}/{COUNT}",
        lambda found: {"input_len": int(_plain(found[0])), "output_len": int(_plain(found[1]))},
        "256/128",
    ),
    _part(rf"({'|'.join(SCENARIOS)})", lambda found: {"scenario": found[0].lower()}, "short"),
    _figure(rf"{NUMBER}\s*bits?", "bits", "4 bits"),
    _part(rf"({'|'.join(DTYPES)})", lambda found: DTYPES[found[0].lower()], "bf16"),
    _part(r"((?:[a-z]+\d{1,4})+)", lambda found: {"strategy": found[0]}, "tp4"),
)


def parse(text: str, defaults: Fields) -> Claim:
    """The claim that `text` makes. defaults: fields that it need not say, as the model and the GPU.
    Raises UserError for what is not understood, with what is."""
    where, said = f"--claim '{text[:80]}'", dict[str, Any]()
    position = _after_fillers(text, 0)
    while position < len(text):
        part, found = _next(text, position, where)
        for field, value in part.fields(found.groups()).items():
            if field in said:
                raise UserError(f"{where} says {field} twice, {said[field]} and {value}; say one")
            said[field] = value
        position = _after_fillers(text, found.end())
    if not said:
        raise UserError(f"{where} says nothing; {_understood()}")
    return claim_of({**defaults, **said}, where)


def _next(text: str, position: int, where: str) -> tuple[Part, re.Match[str]]:
    for part in PARTS:
        if found := part.pattern.match(text, position):
            return part, found
    rest = text[position:]
    rest = rest if len(rest) <= MOST_SHOWN else f"{rest[:MOST_SHOWN]}..."
    raise UserError(f"{where}: '{rest}' is not understood; {_understood()}")


def _understood() -> str:
    return f"a claim is made of {', '.join(part.example for part in PARTS)}"


def _after_fillers(text: str, position: int) -> int:
    found = FILLERS.match(text, position)
    return found.end() if found else position
