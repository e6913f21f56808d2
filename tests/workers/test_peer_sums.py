"""Sums over tp through memory that GPUs share: what is refused, which message goes which way, what
is counted, and that a sum in one kernel with the norm behind it changes no logits. Threads stand
for the ranks, and plain torch for their kernels."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import BASE, FAMILIES, engine_plan, ragged_requests
from torch import Tensor

from strategies import ModelShape
from strategies.traffic import ONE_SHOT, TWO_SHOT
from workers import engines
from workers.backends import LibraryBackend, PeerBackend
from workers.communicator import Communicator
from workers.engines.native import build
from workers.engines.native.contexts import PrefillContext
from workers.engines.native.examining import Examination
from workers.engines.native.kernels import fp8, reference
from workers.engines.native.kernels.fp8 import Fp8, Norm
from workers.engines.native.model import Batch
from workers.engines.native.pages import PAGE
from workers.messages import EnginePlan, Switches, Work
from workers.probes.kernels import Registry
from workers.rank import RankContext

RANKS, TOKENS = 2, 9


def shape_of(family: str, **config: Any) -> ModelShape:
    named = {"architectures": [f"{family}ForCausalLM"]}
    return ModelShape.from_config({**BASE, **FAMILIES[family], **named, **config}, family)


LLAMA = shape_of("Llama")
WORK = Work(ragged_requests(LLAMA.vocab_size), max_concurrency=4)


class Meeting:
    """Where the ranks of a group bring their parts."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * RANKS
        self.barrier = Barrier(RANKS, timeout=30)


@dataclass
class Box:
    """In place of an `Outbox`. puts: how many products were put into it, of which this is the
    last."""

    product: Tensor = field(default_factory=lambda: torch.empty(0))
    puts: int = 0

    def put(self, product: Tensor) -> bool:
        self.product, self.puts = product, self.puts + 1
        return True


@dataclass
class Gathered:
    """`GroupSum` of one rank, by the reference. most: rows that it takes. with_norm: whether it has
    the norm too. box: for products that hand themselves over."""

    meeting: Meeting
    rank: int
    most: int = TOKENS
    with_norm: bool = True
    box: Box | None = None

    def takes(self, x: Tensor | Box) -> bool:
        return x is self.box if isinstance(x, Box) else x.shape[0] <= self.most

    def all_reduce(self, x: Tensor) -> Tensor:
        return reference.summed(self._parts(x))

    def outbox(self, rows: int) -> Box | None:
        return self.box if rows <= self.most else None

    def fuses(self, x: Tensor | Box) -> bool:
        return self.with_norm and self.takes(x)

    def all_reduce_norm(self, x: Tensor | Box, residual: Tensor, norm: Norm) -> Tensor | Fp8:
        x = x.product if isinstance(x, Box) else x
        normed = reference.summed_norm(self._parts(x), residual, norm.weight, norm.eps)
        return normed if norm.reads is None else fp8.quantize(normed, norm.reads)

    def _parts(self, x: Tensor) -> Tensor:
        self.meeting.parts[self.rank] = x
        self.meeting.barrier.wait()
        parts = torch.stack(self.meeting.parts)
        self.meeting.barrier.wait()  # none brings the next before all have these
        return parts


def logits(plan: EnginePlan, communicator: Communicator) -> Tensor:
    """Of TOKENS tokens [TOKENS, what this rank has of the vocabulary]."""
    with torch.inference_mode():
        decoder = build.load_decoder(communicator.context, plan, communicator)
        at, ends = torch.arange(TOKENS), torch.tensor([0, TOKENS], dtype=torch.int32)
        seen = PrefillContext(at + PAGE, ends, ends, TOKENS, TOKENS)
        cache = build.make_cache(communicator.context, plan, 1)
        return decoder.forward(Batch(at * 7 % 100, at, at + PAGE, seen), cache)


def over_tp2(
    shape: ModelShape, fuses: bool, boxes: tuple[Box, Box] | None = None, **changes: Any
) -> tuple[Tensor, Communicator]:
    """The logits of both ranks side by side, and the communicator of the first. boxes: of each."""
    plan, meeting = engine_plan("tp2", shape, None, WORK, **changes), Meeting()

    def run(rank: int) -> tuple[Tensor, Communicator]:
        context = RankContext(rank, plan.placement, torch.device("cpu"))
        box = boxes[rank] if boxes else None
        communicator, sums = Communicator(context), Gathered(meeting, rank, TOKENS, fuses, box)
        communicator.backend = PeerBackend(context, "one-shot", {"tp": [sums]})
        return logits(plan, communicator), communicator

    with ThreadPoolExecutor(RANKS) as pool:
        (first, communicator), (second, _) = pool.map(run, range(RANKS))
    return torch.cat((first, second), -1), communicator


# -- in one kernel with the norm


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (LLAMA, {}),
        (LLAMA, {"dtype": "bfloat16"}),
        (shape_of("Llama", attention_bias=True), {}),
        (LLAMA, {"quantization": "fp8"}),
    ],
    ids=["plain", "in 16 bits", "with a bias behind the sum", "in FP8"],
)
def test_a_norm_in_the_kernel_of_the_sum_changes_no_logits(
    shape: ModelShape, changes: dict[str, Any]
) -> None:
    apart, counted = over_tp2(shape, fuses=False, **changes)
    together, communicator = over_tp2(shape, fuses=True, **changes)
    assert torch.equal(apart, together)
    calls = 2 * shape.num_layers + 1
    assert communicator.calls == counted.calls == {("prefill", "all_reduce", "tp"): calls}
    size = calls * TOKENS * shape.hidden_size * (2 if "dtype" in changes else 4)
    assert communicator.bytes == counted.bytes == {("prefill", "all_reduce", "tp"): size}


@pytest.mark.parametrize(
    ("shape", "changes", "puts"),
    [
        (LLAMA, {}, 2 * LLAMA.num_layers - 1),
        (shape_of("Llama", attention_bias=True), {}, LLAMA.num_layers - 1),
        (LLAMA, {"quantization": "fp8"}, 2 * LLAMA.num_layers - 1),
    ],
    ids=["plain", "with a bias behind the sum", "in FP8"],
)
def test_products_that_hand_themselves_over_change_no_logits(
    shape: ModelShape, changes: dict[str, Any], puts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last one, which no norm is behind, and those that a bias is added to."""
    together, counted = over_tp2(shape, fuses=True, **changes)
    for kernels in (reference, fp8):
        monkeypatch.setattr(kernels, "handed", handed)
    boxes = Box(), Box()
    out, communicator = over_tp2(shape, fuses=True, boxes=boxes, **changes)
    assert torch.equal(out, together)
    assert [box.puts for box in boxes] == [puts, puts]
    assert communicator.calls == counted.calls
    assert communicator.bytes == counted.bytes


def handed(x: Tensor | Fp8, weight: Any, *rest: Any) -> bool:
    """See `Products` and `Fp8Kernels`."""
    *dtype, box = rest
    if isinstance(x, Fp8):
        return bool(box.put(fp8.linear(x, weight, None, *dtype)))
    return bool(box.put(F.linear(x, weight)))


def test_the_logits_are_those_of_one_rank() -> None:
    plan = engine_plan("tp1", LLAMA, None, WORK)
    alone = logits(plan, Communicator(RankContext(0, plan.placement, torch.device("cpu"))))
    torch.testing.assert_close(over_tp2(LLAMA, fuses=True)[0], alone, rtol=1e-4, atol=1e-4)


class Noting(Gathered):
    """Sums of one rank that notes what it is asked for."""

    def _parts(self, x: Tensor) -> Tensor:
        asked.append(tuple(x.shape))
        return torch.stack([x] * RANKS)


asked: list[tuple[int, ...]] = []


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Communicator:
    """Of one rank. What goes to the library is negative in `asked`."""
    asked.clear()

    def library(_: LibraryBackend, x: Tensor, axis: str) -> Tensor:
        asked.append((-x.shape[0],))
        return x

    monkeypatch.setattr(LibraryBackend, "all_reduce", library)
    context = RankContext(0, engine_plan("tp2", LLAMA, None, WORK).placement, torch.device("cpu"))
    small = Noting(Meeting(), 0, most=2, box=Box())
    medium = Noting(Meeting(), 0, most=4, with_norm=False)
    sums = [small, medium, Noting(Meeting(), 0, most=6)]
    communicator = Communicator(context)
    communicator.backend = PeerBackend(context, "one-shot", {"tp": sums})
    return communicator


def test_the_first_that_takes_a_message_sums_it_and_else_the_library(noted: Communicator) -> None:
    for rows in (1, 2, 3, 4, 6, 7):
        noted.all_reduce(torch.ones(rows, 8), "tp")
    noted.all_reduce(torch.ones(1, 8), "pp")
    assert asked == [(1, 8), (2, 8), (3, 8), (4, 8), (6, 8), (-7,), (-1,)]
    fused = [rows for rows in range(1, 8) if noted.fuses(torch.ones(rows, 8), "tp")]
    assert fused == [1, 2, 5, 6]  # what takes 3 and 4 has no norm
    assert not noted.fuses(torch.ones(2, 8), "pp")
    boxes = [noted.outbox(2, "tp"), noted.outbox(3, "tp"), noted.outbox(2, "pp")]
    assert [box is not None for box in boxes] == [True, False, False]
    assert noted.backend.name == "one-shot and gloo"


def test_without_collectives_nothing_is_fused_and_nothing_counted(noted: Communicator) -> None:
    noted.ablated, x = True, torch.ones(1, 8)
    assert not noted.fuses(x, "tp")
    assert noted.outbox(1, "tp") is None
    assert noted.all_reduce(x, "tp") is x
    assert asked == []
    assert not noted.calls


def test_a_fused_sum_is_recorded_as_an_all_reduce(noted: Communicator) -> None:
    with noted.recorded() as recording:
        noted.all_reduce_norm(torch.ones(2, 8), torch.ones(2, 8), Norm(torch.ones(8), 1e-5), "tp")
    assert recording.events == [("all_reduce", "tp", 64)]
    assert not noted.calls


def test_where_layers_are_looked_at_sums_are_apart_from_norms(noted: Communicator) -> None:
    class Layers:
        def __init__(self) -> None:
            self.layers: dict[str, Any] = {}

        _embed = _attention = _mlp = _logits = _in_one = None

    x = torch.ones(2, 8)
    with Examination(noted).of(Layers()):  # type: ignore[arg-type]
        assert not noted.fuses(x, "tp")
        assert noted.outbox(2, "tp") is None
    assert noted.fuses(x, "tp")
    assert noted.outbox(2, "tp") is not None


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("_one_shot_all_reduce", False),
        ("_one_shot_all_reduce_norm", True),
        ("_two_shot_all_reduce", False),
        ("_two_shot_all_reduce_norm", True),
    ],
)
def test_its_kernels_communicate(name: str, fused: bool) -> None:
    found = Registry.beside(PeerBackend.kernels).of(name)
    assert (found.operations, found.fused) == (("all_reduce",), fused)


# -- what is refused


def plan_of(layout: str, kind: str, **changes: Any) -> EnginePlan:
    wide = shape_of("Llama", num_attention_heads=48, num_key_value_heads=48, head_dim=16)
    switches = Switches(allreduce=kind)
    return engine_plan(layout, wide, None, WORK, device="cuda", switches=switches, **changes)


@pytest.mark.parametrize("kind", ["one-shot", "two-shot"])
def test_too_many_ranks_are_refused(kind: str) -> None:
    reason = f"--allreduce {kind} is for tp2, tp3, tp4, tp5, tp6, tp7, tp8, not tp16; use nccl"
    assert reason in str(engines.refusal("torch", plan_of("tp16", kind)))


@pytest.mark.parametrize("layout", ["tp1", "pp2", "tp2", "tp3", "tp2pp2"])
@pytest.mark.parametrize("kind", ["one-shot", "two-shot"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_others_are_not(layout: str, kind: str, dtype: str) -> None:
    assert engines.refusal("torch", plan_of(layout, kind, dtype=dtype)) is None


class Group:
    """A process group."""

    def __init__(self, members: int) -> None:
        self.members = members

    def size(self) -> int:
        return self.members


ONE, TWO, FLAGS = "OneShot of", "TwoShot to", "Flagged of"


def replace_kernels(kind: type[ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that need Triton."""
    for name in ("symmetric", "flagged"):
        path = f"workers.engines.native.kernels.{name}"
        monkeypatch.setitem(sys.modules, path, kind(path))


@pytest.mark.parametrize(
    ("layout", "switches", "made", "name", "tokens"),
    [
        (
            "tp2",
            {"allreduce": "one-shot"},
            [f"{ONE} 64 to 128 KiB", f"{FLAGS} 64 to 32768 KiB"],
            "one-shot and nccl",
            1 << 20,
        ),
        (
            "tp2",
            {"allreduce": "one-shot", "fusion": "off"},
            [f"{ONE} 0 to 128 KiB", f"{FLAGS} 0 to 32768 KiB"],
            "one-shot and nccl",
            1 << 20,
        ),
        (
            "tp2",
            {"allreduce": "two-shot"},
            [f"{ONE} 64 to 1536 KiB", f"{TWO} 2560 KiB"],
            "two-shot and nccl",
            1 << 20,
        ),
        ("tp4", {"allreduce": "one-shot"}, [f"{ONE} 0 to 512 KiB"], "one-shot and nccl", 1 << 20),
        (
            "tp4",
            {"allreduce": "two-shot"},
            [f"{ONE} 0 to 85 KiB", f"{TWO} 2560 KiB"],
            "two-shot and nccl",
            1 << 20,
        ),
        ("tp2", {}, [], "nccl", 1 << 20),
        ("pp2", {"allreduce": "one-shot"}, [], "nccl", 1 << 20),
        (  # no pass has more than 1024 tokens of 64 float32
            "tp2",
            {"allreduce": "one-shot"},
            [f"{ONE} 64 to 128 KiB", f"{FLAGS} 64 to 256 KiB"],
            "one-shot and nccl",
            1024,
        ),
    ],
)
def test_the_engine_sums_as_it_is_told(
    layout: str,
    switches: dict[str, str],
    made: list[str],
    name: str,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    class Kernels(ModuleType):
        """In place of the modules that need Triton."""

        def OneShot(
            self, group: Group, device: Any, dtype: Any, width: int, most: int, handed: int
        ) -> str:
            assert handed == 64
            found.append(f"OneShot of {width} to {most >> 10} KiB")
            return f"{dtype}"

        def TwoShot(self, group: Group, device: Any, dtype: Any, most: int) -> str:
            found.append(f"TwoShot to {most >> 10} KiB")
            return f"{dtype}"

        def Flagged(self, group: Group, device: Any, dtype: Any, width: int, most: int) -> str:
            found.append(f"Flagged of {width} to {most >> 10} KiB")
            return f"{dtype}"

    replace_kernels(Kernels, monkeypatch)
    monkeypatch.setattr(build, "check_peers", lambda *_: None)
    asked = Switches(**switches)
    plan = engine_plan(layout, LLAMA, None, WORK, device="cuda", switches=asked)
    plan = dataclasses.replace(plan, prefill_tokens=tokens)
    groups: Any = {layout[:2]: Group(int(layout[2]))}
    context = RankContext(0, plan.placement, torch.device("cuda", 0), groups)
    assert build.make_communicator(context, plan).backend.name == name
    assert found == made


def test_a_sum_that_is_begun_beside_other_work_is_nccls(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    class Work:
        def wait(self) -> None:
            begun.append("waited for")

    def all_reduce(x: Tensor, group: Any, async_op: bool) -> Work:
        begun.append(f"begun, {async_op}")
        return Work()

    monkeypatch.setattr("workers.backends.dist.all_reduce", all_reduce)
    plan = engine_plan("tp2", LLAMA, None, WORK)
    context = RankContext(0, plan.placement, torch.device("cpu"), {"tp": Group(2)})  # type: ignore[dict-item]
    sums = Gathered(Meeting(), 0)
    x = torch.ones(TOKENS, 4)
    assert sums.takes(x)
    ended = PeerBackend(context, "one-shot", {"tp": [sums]}).start_all_reduce(x, "tp")
    assert ended() is x
    assert begun == ["begun, True", "waited for"]


@pytest.mark.parametrize(
    ("other", "reaches", "reason"),
    [
        (("there", 0), True, "of a group of tp its ranks are on several nodes; use nccl"),
        (("here", 1), False, "GPU 0 does not reach the memory of GPU 1; use nccl"),
        (("here", 1), True, None),
    ],
)
def test_a_group_whose_gpus_do_not_reach_each_other_is_refused(
    other: tuple[str, int], reaches: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(places: list[Any], own: Any, group: Group) -> None:
        places[:] = [own, other]

    monkeypatch.setattr(build.dist, "all_gather_object", gather)
    monkeypatch.setattr(build, "boot_id", lambda: "here")
    monkeypatch.setattr(build.torch.cuda, "can_device_access_peer", lambda mine, theirs: reaches)
    check = build.check_peers
    if reason is None:
        check(torch.device("cuda", 0), Group(RANKS), "one-shot")  # type: ignore[arg-type]
        return
    with pytest.raises(RuntimeError, match=reason):
        check(torch.device("cuda", 0), Group(RANKS), "one-shot")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reaches", "makes", "others", "is_there"),
    [
        (True, True, True, True),
        (False, True, True, False),  # this GPU does not reach another
        (True, False, True, False),  # memory cannot be shared here
        (True, True, False, False),  # nor on another rank
    ],
)
def test_they_are_there_to_be_measured_where_every_rank_has_them(
    reaches: bool, makes: bool, others: bool, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernels(ModuleType):
        """In place of the modules that need Triton."""

        def OneShot(
            self, group: Group, device: Any, dtype: Any, width: int, most: int, *_: int
        ) -> str:
            if not makes:
                raise RuntimeError("pidfd_getfd: operation not permitted")
            return f"{dtype}, {width}"

        def TwoShot(self, group: Group, device: Any, dtype: Any, most: int) -> str:
            return self.OneShot(group, device, dtype, 0, most)

        Flagged = OneShot

    def gather(found: list[bool], own: bool, group: Group) -> None:
        found[:] = [own, others]

    def check(*_: Any) -> None:
        if not reaches:
            raise RuntimeError("GPU 0 does not reach the memory of GPU 1")

    replace_kernels(Kernels, monkeypatch)
    group = Group(4)
    monkeypatch.setattr(build, "check_peers", check)
    monkeypatch.setattr(build.dist, "all_gather_object", gather)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = build.peer_sums(torch.device("cuda", 0), group)  # type: ignore[arg-type]
    assert len(warned) == (not reaches or not makes)  # the rank that has it not says why
    sums = "torch.bfloat16, 0"
    made = [(ONE_SHOT, sums, 512 << 10), (TWO_SHOT, sums, 2560 << 10)]
    assert found == (made if is_there else [])


def test_one_rank_and_more_than_eight_have_none() -> None:
    for members in (1, 9):
        group: Any = Group(members)
        assert build.peer_sums(torch.device("cuda", 0), group) == []
