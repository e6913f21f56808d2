"""`orchestrator audit`, what it prints, and docs/audit.md."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.audit.claims import Claim, load_claims
from orchestrator.audit.phrases import PARTS
from orchestrator.audit.verdicts import ORDER, Audited
from orchestrator.commands.audits import audited
from orchestrator.report.audit import render
from orchestrator.report.output import console_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "article-claims.yaml"
OF = ("--model", "llama-70b", "--gpu", "RTX 6000 Ada,L40S")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_page", ROOT / "scripts/audit_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found() -> list[Audited]:
    return audited(load_claims(EXAMPLE, {}))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["audit", *arguments])


def test_the_page_has_the_verdicts_of_the_example(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run `python scripts/audit_page.py`"


def test_the_page_explains_every_field_part_and_verdict(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert [name for name in Claim.model_fields if f"`{name}`" not in text] == []
    assert [part.example for part in PARTS if f"`{part.example}`" not in text] == []
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for verdict in ORDER:
        words = verdict.replace("fewer", "<= k")
        assert any(line.startswith(f"| {words}") for line in rows), verdict


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(
    width: int, found: list[Audited], capsys: pytest.CaptureFixture[str]
) -> None:
    render(found, console_of(width=width, force_terminal=True, color_system=None))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    words = "".join(printed.split())
    for one in found:
        assert all("".join(step.split()) in words for step in one.arithmetic)


def test_claims_in_words_are_a_row_each_with_their_arithmetic() -> None:
    done = call(*OF, "--claim", "68.2 tok/s at tp4 bf16 concurrency 1", "--claim", "19.9 tok/s")
    assert done.exit_code == 0, done.output
    first, second = (line for line in done.stdout.splitlines() if "llama-70b, tp" in line)
    assert "only as an aggregate over >= 3 requests" in first
    assert "does not fit in memory" in second
    assert "2 make 55.4 tok/s" in done.stdout
    assert done.stdout.endswith("2 claims: only as an aggregate 1, does not fit in memory 1.\n")


def test_json_has_what_the_table_has() -> None:
    done = call(*OF, "--claim", "68.2 tok/s at tp4 bf16 concurrency 1", "--json")
    (found,) = json.loads(done.stdout)
    assert found.pop("arithmetic")[-1].endswith("so 68.2 tok/s is of no fewer.")
    assert found.pop("limit") == pytest.approx(27.7, abs=0.05)
    assert found == {
        "claim": {
            "model": "llama-70b",
            "gpu": ["RTX 6000 Ada", "L40S"],
            "strategy": "tp4",
            "concurrency": 1,
            "output_throughput": 68.2,
        },
        "verdict": "only as an aggregate",
        "sentence": "only as an aggregate over >= 3 requests",
        "strategy": "tp4",
        "gpu": "RTX 6000 Ada",
        "unit": "tok/s in all",
        "requests": 3,
        "bits": None,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a file of claims, or --claim"),
        ((str(EXAMPLE), "--claim", "5 tok/s"), "give a file of claims, or --claim"),
        (("none.yaml",), "none.yaml cannot be read"),
        (("--claim", "5 tok/s"), "nothing is judged without model and gpu"),
        ((*OF, "--claim", "5 tok/s tq3"), "there is no strategy 'tq'; did you mean 'tp3'?"),
        ((*OF, "--claim", "5 tok/s tp4", "--claim", "5 tok/s tq3"), "claim 2: tq3: there is no"),
        ((*OF, "--claim", "5 furlongs"), "'5 furlongs' is not understood"),
        (("--model", "x", "--gpu", "L4", "--claim", "5 tok/s"), "there is no model 'x'"),
        (("--model", "tiny", "--gpu", "x", "--claim", "5 tok/s"), "no data sheet of the GPU 'x'"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = call(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        f"main({['audit', *OF, '--claim', '68.2 tok/s tp4']}, standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_card_with_less_memory_than_is_claimed_is_named_without_an_article() -> None:
    done = call("--model", "llama-8b", "--gpu", "L40S", "--claim", "90 GB at tp1")
    assert "The L40S has no more than 51.5 GB." in done.stdout


def test_a_layout_that_cannot_be_is_judged_beside_others() -> None:
    done = call(*OF, "--claim", "5 tok/s tp4", "--claim", "5 tok/s tp3")
    assert done.exit_code == 0
    assert "2 claims: possible 1, impossible 1." in done.stdout
    assert "64 heads of llama-70b do not divide over tp=3" in done.stdout
