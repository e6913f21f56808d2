"""What docs/performance.md says of the layers of a rank follows from the published tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/results"
PAGE = (ROOT / "docs/performance.md").read_text()
SECTION, SUMS, PLACED = (
    PAGE.partition(f"### {words}")[2].partition("\n### ")[0]
    for words in (
        "Small kernels that go",
        "Sums that products hand over",
        "Attention placed at once",
    )
)
NAMES = {"qwen2.5-32b": "32B tp2", "llama-70b": "70B tp2"}
FORMS = {"none": "BF16", "fp8": "FP8"}


def rows_of(name: str) -> list[dict[str, Any]]:
    table = pyarrow.ipc.open_file(FOLDER / f"{name}.arrow").read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def with_both(name: str) -> Mapping[tuple[str, str, int], dict[str, Any]]:
    """The rows with products in Triton and kernels that are launched early."""
    return {
        (row["model"], row["quantization"], row["requests"]): row
        for row in rows_of(name)
        if (row["products"], row["pdl"]) == ("triton", "on")
    }


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_takes_what_the_page_says(model: str, form: str) -> None:
    before, after = (
        with_both("1xh200/few_rows_neighbours_before"),
        with_both("1xh200/few_rows_neighbours"),
    )
    lines = SECTION.splitlines()
    begin = next(
        number
        for number, line in enumerate(lines)
        if line.startswith(f"| {NAMES[model]}, {FORMS[form]} |")
    )
    for line, requests in zip(lines[begin : begin + 4], (1, 8, 32, 64), strict=True):
        one, other = (table[model, form, requests] for table in (before, after))
        us, bound = other["us"], other["bound_us"]
        assert cells_of(line)[1:] == [
            *(str(requests), f"{one['us']:.1f}", f"{us:.1f}", f"{us / one['us'] - 1:+.1%}"),
            *(f"{bound:.1f}", f"{bound / us:.0%}"),
        ]


@pytest.mark.parametrize(("form", "requests"), [(f, n) for f in FORMS for n in (1, 32)])
def test_its_kernels_take_what_the_page_says(form: str, requests: int) -> None:
    kernels = [
        f"{row['us']:.1f}"
        for row in rows_of("1xh200/layer_kernels")
        if (row["quantization"], row["requests"]) == (form, requests)
    ]
    (line,) = re.findall(rf"^\| {FORMS[form]} \| {requests} \|.*$", SECTION, re.MULTILINE)
    assert [cell for cell in cells_of(line)[2:] if cell] == kernels


def layers(name: str) -> dict[tuple[str, int], float]:
    """Form and requests -> us of a layer whose sums two GPUs make."""
    found: dict[tuple[str, int], float] = {}
    for row in rows_of(f"2xh200/layer_kernels_{name}"):
        of = FORMS[row["quantization"]], row["requests"]
        found[of] = found.get(of, 0.0) + row["us"]
    return found


@pytest.mark.parametrize(
    ("before", "after", "wanted", "more", "section"),
    [
        ("before", "handed", [(f, n) for f in FORMS.values() for n in (1, 8, 32, 64)], "", SUMS),
        ("handed_again", "placed", [("FP8", 1), ("FP8", 32)], ", placed at once", SUMS),
        (
            "attention_before",
            "attention_placed",
            [(f, n) for f in FORMS.values() for n in (1, 8, 16, 32, 48, 64)],
            "",
            PLACED,
        ),
    ],
)
def test_layers_whose_ranks_sum_take_what_the_page_says(
    before: str, after: str, wanted: list[tuple[str, int]], more: str, section: str
) -> None:
    then, now = layers(before), layers(after)
    for form, requests in wanted:
        name = f"{form}{more}" if requests == 1 else ""
        figures = f"{then[form, requests]:.1f} | {now[form, requests]:.1f}"
        less = f"{now[form, requests] / then[form, requests] - 1:+.1%}"
        assert f"| {name}{' ' * bool(name)}| {requests} | {figures} | {less} |" in section


def test_attention_alone_takes_what_the_page_says() -> None:
    then, now = (
        {
            (row["kv_cache_dtype"], row["requests"], row["context"]): row["us"]
            for row in rows_of(f"1xh200/attention_{name}")
            if row["phase"] == "decode"
        }
        for name in ("one_page", "two_pages")
    )
    assert len(then) == len(now) == 20
    for (dtype, requests, context), us in then.items():
        other = now[dtype, requests, context]
        is_fp8 = dtype == "float8_e4m3fn"
        line = f"| {'FP8' if is_fp8 else 'BF16'} | {requests} | {context:,} | "
        line += f"{us:.1f} | {other:.1f} | {other / us - 1:+.1%} |"
        assert (line in PLACED) == (is_fp8 or abs(other / us - 1) > 0.01)
