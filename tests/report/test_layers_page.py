"""What docs/performance.md says of the layers of a rank follows from the published tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/results/1xh200"
PAGE = (ROOT / "docs/performance.md").read_text()
SECTION = PAGE.partition("### Small kernels that go")[2].partition("\n### ")[0]
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
    before, after = with_both("few_rows_neighbours_before"), with_both("few_rows_neighbours")
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
        for row in rows_of("layer_kernels")
        if (row["quantization"], row["requests"]) == (form, requests)
    ]
    (line,) = re.findall(rf"^\| {FORMS[form]} \| {requests} \|.*$", SECTION, re.MULTILINE)
    assert [cell for cell in cells_of(line)[2:] if cell] == kernels
