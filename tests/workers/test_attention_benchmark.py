"""`benchmarks/attention.py`: what it measures of which kind, and what it says of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import BENCHMARKS, ended, loaded
from fake_attention import fa3 as library

from workers.engines.native.kernels import dense, fa3

SCRIPT = BENCHMARKS / "attention.py"
CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """With little to do."""
    module = loaded("attention", monkeypatch)
    monkeypatch.setattr(module, "SWEEP", replace(module.SWEEP, samples=1))
    monkeypatch.setattr(module, "FLOW", 1 << 16)
    monkeypatch.setattr(module, "APART", 1 << 15)
    with torch.inference_mode():
        yield module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would measure")
def test_without_a_gpu_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "attention is measured on a GPU, and this machine has none"
    assert ended(SCRIPT, patch=monkeypatch) == said
    assert capsys.readouterr() == ("", "")


def test_heads_are_those_of_a_rank(script: ModuleType) -> None:
    shape = script.models.resolve("qwen2.5-32b", "dummy").shape
    found = [script.Heads.of(shape, tp)[2:] for tp in (1, 2, 4)]
    assert found == [(40, 8, 128), (20, 4, 128), (10, 2, 128)]


@pytest.mark.parametrize(
    ("case", "pairs", "tokens"),
    [
        (("decode", 3, 1, 100), 3 * 100, 3 * 100),
        (("prefill", 2, 20, 20), 2 * sum(range(1, 21)), 2 * 20),
        (("prefill", 1, 8, 100), sum(range(93, 101)), 100),
    ],
)
def test_each_kind_has_a_row_whose_rate_is_of_its_time(
    case: tuple[str, int, int, int], pairs: int, tokens: int, script: ModuleType, tmp_path: Path
) -> None:
    heads, bounds = script.Heads("m", 2, 4, 2, 16), {"decode": 1e9, "prefill": 1e10}
    with library() as calls:
        kinds = {"sdpa": dense.SDPA, "fa3": fa3}
        rows = list(script.measured(CPU, kinds, heads, script.Case(*case), BF16, bounds))
    assert [one.kind for one in rows] == ["sdpa", "fa3"]
    work = 2 * 2 * 2 * 16 * tokens if case[0] == "decode" else 4 * 4 * 16 * pairs
    for one in rows:
        assert one.rate == pytest.approx(1e6 * work / one.us)
        assert one.share == pytest.approx(one.rate / bounds[case[0]])
    plans, layers = calls["get_scheduler_metadata"], calls["fwd"]
    assert plans * 4 == layers if case[0] == "decode" else plans == 0
    path = tmp_path / "attention.arrow"
    script.write_part(path, script.ATTENTION.make(rows))
    assert path.stat().st_size > 0


def test_a_copy_of_contexts_that_are_too_large_is_not_tried(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MOST_COPIED", 1000)
    heads, case = script.Heads("m", 1, 2, 1, 16), script.Case("decode", 1, 1, 64)
    kinds = {"sdpa": dense.SDPA, "eager": dense.EAGER}
    rows = script.measured(CPU, kinds, heads, case, BF16, {"decode": 1.0})
    assert [one.kind for one in rows] == ["eager"]


def test_kinds_stand_beside_the_first_one(script: ModuleType) -> None:
    def row(kind: str, context: int, us: float) -> object:
        case = {"requests": 1, "new_tokens": 1, "context": context, "us": us}
        who = {"model": "m", "tp": 1, "heads": 4, "kv_heads": 2, "kv_cache_dtype": "bfloat16"}
        rates = {"rate": 2e12, "bound": 4e12, "share": 0.5}
        return script.AttentionRow(gpu="G", phase="decode", kind=kind, **who, **case, **rates)

    rows = [
        *(row("triton", at, us) for at, us in ((384, 10.0), (4096, 20.0))),
        *(row("fa3", at, us) for at, us in ((384, 20.0), (4096, 10.0))),
        row("sdpa", 384, 40.0),
    ]
    assert script.told(rows).splitlines() == [
        "G, KV in bfloat16: us of a layer, and share of the bound",
        "",
        "decode; the bound is 4 TB/s",
        "model         tp requests   new context            triton               fa3"
        "              sdpa",
        "m              1        1     1     384        10.0   50%        20.0   50%"
        "        40.0   50%",
        "m              1        1     1    4096        20.0   50%        10.0   50%",
        "fa3 takes 1.00 of the time of triton (geometric mean of 2), 0.50 to 2.00, longer in 1",
        "sdpa takes 4.00 of the time of triton (geometric mean of 1), 4.00 to 4.00, longer in 1",
    ]
