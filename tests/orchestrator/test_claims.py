"""How claims are written: in a file, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit.claims import KINDS, Claim, load_claims
from orchestrator.audit.phrases import PARTS, parse
from orchestrator.errors import UserError

OF = {"model": "llama-70b", "gpu": "H200"}
FIGURE = "model: llama-70b, gpu: H200, output_throughput: 5"


def in_file(folder: Path, text: str) -> list[Claim]:
    path = folder / "claims.yaml"
    path.write_text(text)
    return load_claims(path, {})


# -- in words


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("68.2 tok/s at tp4", {"output_throughput": 68.2, "strategy": "tp4"}),
        ("68 tokens/s with tp2pp2", {"output_throughput": 68, "strategy": "tp2pp2"}),
        ("9.9 tok/s/user on 4 gpus", {"per_request_throughput": 9.9, "gpus": 4}),
        ("9.9 tok/s per request at 100 concurrent", {"concurrency": 100}),
        ("ttft 200ms, short", {"ttft_ms": 200, "scenario": "short"}),
        ("TTFT 200 ms 256/128", {"input_len": 256, "output_len": 128}),
        ("ttft 9 ms LONG 90% prefix hits", {"scenario": "long", "prefix_hits": 0.9}),
        ("tpot 14.7 ms in fp16", {"tpot_ms": 14.7, "dtype": "float16"}),
        ("40GB in 4 bits", {"memory_gb": 40, "bits": 4}),
        ("5 tok/s int4", {"bits": 4}),
        ("5 tok/s fp8 concurrency 1", {"dtype": "fp8", "concurrency": 1}),
        ("1,234.5 tok/s at 1,000 concurrent", {"output_throughput": 1234.5, "concurrency": 1000}),
        ("1,234,567 tok/s, tp4, 16,384/128", {"output_throughput": 1234567, "input_len": 16384}),
        ("5 tok/s concurrency 1,256/128", {"concurrency": 1, "input_len": 256}),
        ("22% communication", {"comm_pct": 22}),
        ("75 % utilization", {"utilization_pct": 75}),
        ("2.3x", {"speedup": 2.3}),
        ("tp4", {"strategy": "tp4"}),
    ],
)
def test_a_claim_in_words_is_the_same_as_its_fields(text: str, fields: dict[str, Any]) -> None:
    found = parse(text, OF)
    assert found.model == "llama-70b"
    assert {name: getattr(found, name) for name in fields} == fields


def test_every_example_that_an_error_shows_is_understood() -> None:
    for part in PARTS:
        text = f"{part.example} short" if "ttft" in part.example else part.example
        text += " 9/9" if "hits" in part.example else ""
        assert parse(text, OF)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "says nothing; a claim is made of 9.9 tok/s per request"),
        ("68.2 parsecs", "'68.2 parsecs' is not understood; a claim is made of"),
        ("68.2 tok/s at tp4!", "'!' is not understood"),
        (f"5 {'x' * 60}", f"'5 {'x' * 38}...' is not understood"),
        ("68.2 tok/s or 70 tok/s", "'or 70 tok/s' is not understood"),
        ("68.2 tok/s 70 tok/s", "says output_throughput twice, 68.2 and 70.0; say one"),
        ("-5 tok/s tp4", "output_throughput: input should be greater than 0, found -5.0"),
        ("5 tok/s 200 ms", "'200 ms' is not understood"),
        ("5 tok/s 22% communication", "output_throughput and comm_pct are two claims"),
        ("5 tok/s 0 concurrent", "concurrency: input should be greater than 0, found 0"),
        ("1,23 tok/s", "'1,23 tok/s' is not understood"),
        ("5 tok/s int4 fp8", "fp8 and 4 bits say the bits of a weight twice; say one"),
        ("5 tok/s 99 bits", "bits: input should be less than or equal to 32, found 99.0"),
    ],
)
def test_what_is_not_understood_is_shown_with_what_is(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, OF)
    assert words in str(caught.value)


# -- in a file


def test_fields_beside_the_claims_hold_where_a_claim_says_nothing(tmp_path: Path) -> None:
    first, second = in_file(
        tmp_path,
        """
        model: llama-70b
        gpu: [L40S, RTX 6000 Ada]
        scenario: short
        claims:
          - {strategy: tp4, output_throughput: 68.2}
          - {model: llama-8b, gpu: L4, input_len: 10, output_len: 20, tpot_ms: 5}
        """,
    )
    assert (first.model, first.gpu, first.lengths) == (
        "llama-70b",
        ("L40S", "RTX 6000 Ada"),
        (256, 128),
    )
    assert (second.model, second.gpu, second.lengths) == ("llama-8b", ("L4",), (10, 20))


def test_defaults_hold_where_the_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("gpu: L4\nclaims: [{tpot_ms: 5}]")
    (found,) = load_claims(path, {"model": "llama-8b", "gpu": "H200"})
    assert (found.model, found.gpu) == ("llama-8b", ("L4",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no list of claims; write one"),
        ("claims: []", "there is no list of claims"),
        ("claims: {a: b}", "there is no list of claims"),
        ("[1, 2]", "expected fields and their values, as in 'claims: ["),
        ("claims: [5]", "claim 1: expected fields and their values"),
        (f"claims: [{{{FIGURE}, throughput: 5}}]", "no field 'throughput'; a claim has model, gpu"),
        (f"claims: [{{{FIGURE}}}, {{{FIGURE}, concurrency: -1}}]", "claim 2: concurrency: input"),
        (f"claims: [{{{FIGURE}, concurrency: yes}}]", "should be a valid integer, found True"),
        ("claims: [{model: llama-70b, gpu: H200, output_throughput: .nan}]", "finite number"),
        (f"claims: [{{{FIGURE}, output_throughput: 6}}]", "'output_throughput' is there twice"),
        (f"claims: [{{{FIGURE}, tpot_ms: 5}}]", "output_throughput and tpot_ms are two claims"),
        (f"claims: [{{{FIGURE}, scenario: middle}}]", "no scenario 'middle'; use short, long"),
        (f"claims: [{{{FIGURE}, scenario: short, input_len: 1}}]", "say the lengths twice"),
        (f"claims: [{{{FIGURE}, input_len: 1}}]", "input_len and output_len go together"),
        (f"claims: [{{{FIGURE}, dtype: fp8, bits: 4}}]", "say the bits of a weight twice"),
        (f"claims: [{{{FIGURE}, prefix_hits: 0.5}}]", "prefix_hits is a share of the prompt"),
        (f"claims: [{{{FIGURE}, dtype: int3}}]", "dtype: input should be 'bfloat16'"),
        ("claims: [{model: tiny, gpu: L4, ttft_ms: 5}]", "ttft_ms depends on the prompt"),
        ("claims: [{model: tiny, output_throughput: 5}]", "nothing is judged without gpu"),
        ("claims: [{source: nothing}]", "nothing is judged without model and gpu"),
    ],
)
def test_what_is_no_claim_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        in_file(tmp_path, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_figure_is_written_with_its_unit() -> None:
    said = [Claim(**{**OF, "scenario": "short", name: 5}).said for name in KINDS]
    assert said[:3] == ["5 tok/s in all", "5 tok/s a request", "5 ms to the first token"]
    assert "5% communication" in said
    assert "5x" in said
    assert "+5% change" in said
    assert Claim(**OF).said == "that it runs"
