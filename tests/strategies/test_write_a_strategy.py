"""docs/write-a-strategy.md: its code runs, its errors are the real ones, and it explains every
field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import strategies
from strategies import (
    Device,
    Installed,
    LayoutError,
    Load,
    ModelShape,
    Placement,
    Split,
    Stage,
    Topology,
    discover,
    plan_layout,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-a-strategy.md").read_text(encoding="utf-8")
TYPES = (Placement, Split, Stage, ModelShape, Load, Topology, Device)
PACKAGES = {"mtp": "mlp-tp", "ppfront": "pp-front", "byhand": "my-package", "stride": "my-package"}


def blocks(language: str) -> list[str]:
    """The code blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the names on the page stand for when its python blocks have run, one after the other."""
    names: dict[str, Any] = {"__name__": "write_a_strategy"}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"python block {number} of write-a-strategy.md", "exec"), names)
    return names


def shape_of(model: str) -> ModelShape:
    presets = ROOT / "orchestrator" / "presets"
    file = presets / model / "config.json" if model == "tiny" else presets / f"{model}.json"
    return ModelShape.from_config(json.loads(file.read_text()), model)


def planned(page: dict[str, Any], name: str, model: str, **more: Any) -> Placement:
    """A layout of the page's strategies and the built-in ones."""
    functions = {key: page["by_hand" if key == "byhand" else key] for key in PACKAGES} | more
    made = {key: Installed(key, PACKAGES.get(key, "my-package"), f) for key, f in functions.items()}
    return plan_layout(
        name, shape_of(model), Load(16, 16, 8), Topology.uniform(8), {**discover(), **made}
    ).placement


# -- the examples


@pytest.mark.parametrize(
    ("file", "language"),
    [
        ("mlp_tp/mlp_tp.py", "python"),
        ("mlp_tp/pyproject.toml", "toml"),
        ("pp_front/pp_front.py", "python"),
    ],
)
def test_the_examples_on_the_page_are_those_that_can_be_installed(file: str, language: str) -> None:
    assert (ROOT / "examples" / file).read_text() in blocks(language)


def test_its_own_tests_pass(page: dict[str, Any]) -> None:
    tests: list[Callable[[], None]] = [f for name, f in page.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


@pytest.mark.parametrize(("model", "columns"), [("tiny", 704), ("llama-70b", 28672)])
def test_the_tensor_parallel_example_cuts_the_mlp_alone(
    page: dict[str, Any], model: str, columns: int
) -> None:
    placement, shape = planned(page, "mtp4", model), shape_of(model)
    assert placement.mesh == (("tp", 4),)
    cut = {name for name, _ in shape.parameters() if placement.is_split(name, "tp")}
    assert len(cut) == 3 * shape.num_layers
    assert all(".mlp." in name for name in cut)
    down = "model.layers.1.mlp.down_proj.weight"
    assert placement.shard(down, dict(shape.parameters())[down], rank=1) == (
        slice(0, shape.hidden_size),
        slice(columns // 4, columns // 2),
    )


@pytest.mark.parametrize(
    ("model", "name", "layers"),
    [
        ("tiny", "ppfront2", [1, 3]),
        ("tiny", "ppfront4", [1, 1, 1, 1]),
        ("llama-70b", "ppfront2", [26, 54]),
        ("llama-70b", "ppfront4", [11, 23, 23, 23]),
    ],
)
def test_the_pipeline_example_has_a_short_first_stage(
    page: dict[str, Any], model: str, name: str, layers: list[int]
) -> None:
    placement = planned(page, name, model)
    assert [len(stage.layers) for stage in placement.stages] == layers
    assert [stage.pp_rank for stage in placement.stages] == list(range(len(layers)))
    assert placement.mesh == (("pp", len(layers)),)


def test_the_pipeline_example_refuses_more_stages_than_layers(page: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match=r"^ppfront=5 is more stages than tiny has layers"):
        planned(page, "ppfront5", "tiny")


@pytest.mark.parametrize("model", ["tiny", "llama-70b"])
def test_stages_may_be_written_by_hand(page: dict[str, Any], model: str) -> None:
    first, last = planned(page, "byhand2", model).stages
    assert (len(first.layers), first.embed, last.head) == (1, True, True)


@pytest.mark.parametrize("model", ["tiny", "llama-70b"])
def test_devices_may_be_put_in_another_order(page: dict[str, Any], model: str) -> None:
    assert planned(page, "tp2dp2stride2", model).devices == (0, 2, 1, 3)
    assert planned(page, "tp2dp2stride1", model).devices == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["mtp1", "ppfront1", "stride1"])
def test_an_example_of_one_rank_changes_nothing(page: dict[str, Any], name: str) -> None:
    assert planned(page, name, "tiny") == Placement.single(shape_of("tiny"))


# -- what is said


def misspelt(placement: Placement, number: int, *_: Any) -> Placement:
    return placement.with_axis("tp", number).with_params({"model.embed.weight": Split("tp", 0)})


def idle(placement: Placement, number: int, *_: Any) -> Placement:
    return placement.with_axis("tp", number)


def elsewhere(placement: Placement, number: int, *_: Any) -> Placement:
    cuts = {"model.layers.*.mlp.up_proj.weight": Split("ep", 0)}
    return placement.with_axis("tp", number).with_params(cuts)


def open_ended(placement: Placement, number: int, *_: Any) -> Placement:
    return strategies.with_stages(placement, (3,) * number)


@pytest.mark.parametrize("refine", [misspelt, idle, elsewhere, open_ended])
def test_the_errors_on_the_page_are_the_real_ones(page: dict[str, Any], refine: Any) -> None:
    with pytest.raises(LayoutError) as caught:
        planned(page, "mine2", "llama-70b", mine=refine)
    (errors,) = blocks("text")
    assert f"error: {caught.value}" in [" ".join(e.split()) for e in errors.split("\n\n")]


@pytest.mark.parametrize("kind", TYPES)
def test_every_public_field_is_explained(kind: Any) -> None:
    heading = f"### {kind.__name__}\n"
    assert heading in PAGE
    section = re.split(r"^##+ ", PAGE.partition(heading)[2], maxsplit=1, flags=re.MULTILINE)[0]
    missing = [one.name for one in fields(kind) if f"\n| `{one.name}` | " not in section]
    assert missing == []


@pytest.mark.parametrize("kind", TYPES)
def test_every_public_method_is_mentioned(kind: type) -> None:
    own = {name for name in vars(kind) if not name.startswith("_")} - {f.name for f in fields(kind)}
    hidden = {"single", "bounds"}  # what a strategy gets, and what `shard` is made of
    assert [name for name in sorted(own - hidden) if not re.search(rf"\b{name}\b", PAGE)] == []


def test_every_public_name_is_mentioned() -> None:
    assert [name for name in strategies.__all__ if f"`{name}" not in PAGE] == []


def test_every_parameter_of_a_model_is_listed() -> None:
    everything = ModelShape(
        "m", "llama", 8, 1, 2, 1, 4, 8, 8, 8, 1e-6, 1e4,
        qkv_bias=True, output_bias=True, qk_norm=True,
    )  # fmt: skip
    for name, _ in everything.parameters():
        *_, last, kind = name.split(".")
        assert last in PAGE
        assert kind in ("weight", "bias")
