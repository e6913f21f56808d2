"""From a profiler's trace to spans: which kernels communicate, in which step each ran, and which
call of the Communicator it carried out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from workers.backends import CommunicationKernel, LibraryBackend
from workers.probes.kernels import Registry
from workers.probes.spans import StepOf
from workers.probes.trace import Kernel, kernel_spans, read_kernels
from workers.records import COMPUTE, DECODE, PREFILL, SPANS, Call, SpanRow

NCCL_ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
NCCL_SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
GEMM = "nvjet_tst_128x64_64x8_2x1_v_bz_TNN"
KNOWN = Registry.beside(LibraryBackend.kernels)
FLASHINFER = "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_"
PATTERN = "(flashinfer::trtllm_allreduce_fusion::AllReduceFusionPattern)"
TENSORRT = "void tensorrt_llm::kernels::ar_fusion::"
MNNVL = "void flashinfer::trtllm_mnnvl_allreduce::"


def kernel(name: str, start: float = 0.0, end: float = 1.0, **changes: Any) -> Kernel:
    """A kernel of decode step 0, launched at `start` unless told otherwise."""
    return Kernel(
        **{
            "name": name,
            "phase": DECODE,
            "step": 0,
            "launched": start,
            "start": start,
            "end": end,
            **changes,
        }
    )


def call(op: str, size: int = 8, axis: str = "tp", phase: str = DECODE) -> Call:
    return Call(op, axis, size, phase)


def spans(
    kernels: list[Kernel], calls: dict[int, list[Call]] | None = None, registry: Registry = KNOWN
) -> list[SpanRow]:
    """calls: by number of the decode step."""
    made = {StepOf(3, DECODE, step): found for step, found in (calls or {}).items()}
    return SPANS.rows(kernel_spans(3, kernels, made, registry))


# -- the registry of kernels that communicate


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        # NCCL 2.19 and after, before, and on symmetric memory.
        (NCCL_ALL_REDUCE, "all_reduce"),
        ("ncclKernel_AllReduce_RING_LL_Sum_half(ncclDevComm*, unsigned long)", "all_reduce"),
        ("ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16", "all_reduce"),
        ("ncclSymkDevKernel_AllGather_STMC(ncclSymkDevWorkArgs4K)", "all_gather"),
        ("ncclSymkDevKernel_ReduceScatter_LL_sum_f32", "reduce_scatter"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_gather"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "reduce_scatter"),
        ("ncclDevKernel_Broadcast_RING_LL", "broadcast"),
        (NCCL_SEND_RECV, "send"),
        (NCCL_SEND_RECV, "recv"),
        ("ncclDevKernel_Generic_1(ncclDevKernelArgsStorage<4096ul>)", "all_gather"),
        # torch's symmetric memory.
        (
            "void (anonymous namespace)::one_shot_all_reduce_kernel<c10::BFloat16, 16, 2>"
            "(c10::BFloat16**, c10::BFloat16*, c10::BFloat16*, unsigned long)",
            "all_reduce",
        ),
        (
            "void (anonymous namespace)::two_shot_all_reduce_kernel_inplace<c10::BFloat16, 16, 2>"
            "(c10::BFloat16**, unsigned long)",
            "all_reduce",
        ),
        (
            "void (anonymous namespace)::two_shot_all_reduce_kernel<c10::BFloat16, 16, 2, true, "
            "false>(c10::BFloat16**)",
            "reduce_scatter",
        ),
        ("void (anonymous namespace)::multimem_all_reduce_kernel<float, 16>(float*)", "all_reduce"),
        ("void multimem_one_shot_all_reduce_kernel<c10::BFloat16, 16>()", "all_reduce"),
        ("void (anonymous namespace)::multimem_all_gather_kernel<16>(char*)", "all_gather"),
        # vLLM's, also in SGLang and FlashInfer.
        (
            "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*, "
            "vllm::RankSignals, vllm::Signal*, __nv_bfloat16*, int, int)",
            "all_reduce",
        ),
        ("void sglang::cross_device_reduce_2stage<__nv_bfloat16, 8>()", "all_reduce"),
        # FlashInfer's and TensorRT-LLM's without a norm.
        (f"{FLASHINFER}oneshot_lamport<{PATTERN}0, __nv_bfloat16, 8, false, false>", "all_reduce"),
        (
            f"{MNNVL}oneshotAllreduceFusionKernel<(unsigned char)4, __nv_bfloat16, false, "
            "(flashinfer::QuantType)0, float4>",
            "all_reduce",
        ),
        (f"{MNNVL}twoshotAllreduceKernel<(unsigned char)4, __nv_bfloat16>", "all_reduce"),
        ("void tensorrt_llm::kernels::oneShotAllReduceKernel<__nv_bfloat16, 8>", "all_reduce"),
        ("void tensorrt_llm::kernels::twoShotAllReduceKernel<__nv_bfloat16, 8>", "all_reduce"),
        # Triton's, by the name of their function.
        ("one_shot_all_reduce_kernel_optimized", "all_reduce"),
        ("allreduce_two_shot_multimem_intra_node_kernel", "all_reduce"),
        ("_all_gather_push_kernel_0d1d2d", "all_gather"),
        ("kernel_reduce_scatter_ring", "reduce_scatter"),
        # NVSHMEM's on a stream.
        ("void rdxn_on_stream_kernel<float, (rdxn_ops)4>(int, float*, float const*)", "all_reduce"),
        ("void fcollect_on_stream_kernel<char>(int, char*, char const*)", "all_gather"),
        ("void reducescatter_on_stream_kernel<float, (rdxn_ops)4>(int)", "reduce_scatter"),
        ("void broadcast_on_stream_kernel<char>(int, char*, char const*)", "broadcast"),
        ("void alltoall_on_stream_kernel<char>(int, char*, char const*)", "other"),
        ("barrier_on_stream_kernel_threadgroup(int, int)", "other"),
        ("void nvshmemi_reduce_kernel<int, (rdxn_ops)4>(int, int, int)", "all_reduce"),
        # Transformer Engine's, and copies between GPUs.
        ("userbuffers_fp16_sum_inplace_gpu_rw_ag<4>(int, int)", "all_gather"),
        ("kuserbuffers_pushsend(int*, int*, int4*, int4*, int)", "send"),
        ("Memcpy PtoP (Device -> Device)", "send"),
    ],
)
def test_a_kernel_that_communicates_is_known_by_its_name(name: str, operation: str) -> None:
    assert operation in KNOWN.of(name).operations
    (span,) = spans([kernel(name)])
    assert span.kind != COMPUTE
    assert span.fused is False


@pytest.mark.parametrize(
    "name",
    [
        f"{FLASHINFER}oneshot_lamport<{PATTERN}1, __nv_bfloat16, 8, false, false>",
        f"{FLASHINFER}twoshot_sync<{PATTERN}1, __nv_bfloat16, 4, false>",
        f"{TENSORRT}allreduce_fusion_kernel_twoshot_sync<4>",
        f"{TENSORRT}moe::moereduce_allreduce_fusion_kernel_oneshot_lamport<__nv_bfloat16, 8>",
        f"{TENSORRT}moe::moefinalize_allreduce_fusion_kernel_oneshot_lamport<__nv_bfloat16, 8>",
        f"{MNNVL}oneshotAllreduceFusionKernel<(unsigned char)8, __nv_bfloat16, true, float4>",
        f"{MNNVL}rmsNormLamport<__nv_bfloat16, float>",
        "void flashinfer::trtllm_allreduce::reduce_fusion::one_shot_all_reduce_norm_kernel<half>",
        "void reduce_fusion::lamport_style_one_shot_all_reduce_norm_kernel<1, half, 8, false>",
        "void reduce_fusion::one_shot_prenorm_all_reduce_norm_kernel<half, 8, false, true>",
        "_all_reduce_rms_norm_kernel_0d1d2d",  # Triton
        "kernel_gemm_allreduce_persistent",
    ],
)
def test_a_kernel_that_reduces_and_normalises_is_named_as_such(name: str) -> None:
    assert KNOWN.of(name).operations == ("all_reduce",)
    (span,) = spans([kernel(name)], {0: [call("all_reduce", 64)]})
    assert (span.kind, span.fused, span.axis, span.bytes) == ("all_reduce", True, "tp", 64)


@pytest.mark.parametrize(
    "name",
    [
        GEMM,
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float> >()",
        "_norm_kernel_0d1d2d",
        "triton_red_fused__to_copy_add_all_reduce_mean_mul_pow_rsqrt_wait_tensor_0",
        "mul_broadcast_2d_kernel",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float>()",
        "Memcpy DtoD (Device -> Device)",
        "Memcpy HtoD (Pageable -> Device)",
        "Memcpy DtoH (Device -> Pinned)",
        "Memset (Device)",
    ],
)
def test_any_other_kernel_computes(name: str) -> None:
    assert KNOWN.of(name).operations == ()
    (span,) = spans([kernel(name)])
    assert (span.kind, span.fused) == (COMPUTE, None)


def test_a_backend_declares_what_it_launches() -> None:
    """Without that its kernel is compute, and its call is one that was not seen."""
    mine = CommunicationKernel("sum_over_ranks", ("all_reduce",), fused=True)
    kernels, calls = [kernel("_sum_over_ranks_0d1d")], {0: [call("all_reduce", 64)]}
    (known,) = spans(kernels, calls, Registry.beside([mine]))
    assert (known.kind, known.fused, known.bytes, known.when) == ("all_reduce", True, 64, (0, 1))
    computed, unseen = spans(kernels, calls)
    assert computed.kind == COMPUTE
    assert (unseen.kind, unseen.axis, unseen.bytes, unseen.when) == ("all_reduce", "tp", 64, None)


# -- compute


def test_compute_is_merged_where_kernels_touch_or_overlap() -> None:
    found = spans(
        [kernel(GEMM, 0, 5), kernel(GEMM, 4, 9), kernel(GEMM, 9, 10), kernel(GEMM, 12, 13)]
    )
    assert [(span.start_us, span.end_us) for span in found] == [(0, 10), (12, 13)]
    assert {(span.rank, span.phase, span.step, span.axis, span.bytes) for span in found} == {
        (3, DECODE, 0, None, None)
    }


def test_compute_of_two_steps_is_not_merged() -> None:
    found = spans([kernel(GEMM, 0, 5, phase=PREFILL), kernel(GEMM, 5, 9, step=1)])
    assert [(span.phase, span.step) for span in found] == [(PREFILL, 0), (DECODE, 1)]


def test_spans_are_in_order_of_their_start() -> None:
    found = spans([kernel(NCCL_ALL_REDUCE, 6, 8), kernel(GEMM, 0, 5), kernel(GEMM, 9, 10)])
    assert [span.start_us for span in found] == [0, 6, 9]


# -- kernels and calls


def test_kernels_are_matched_with_calls_in_the_order_of_their_launch() -> None:
    kernels = [
        kernel(NCCL_SEND_RECV, 20, 30, launched=2),
        kernel(NCCL_ALL_REDUCE, 25, 27, launched=1),
    ]
    found = spans(kernels, {0: [call("all_reduce", 64), call("send", 16, "pp", PREFILL)]})
    assert [(s.kind, s.axis, s.call_phase, s.bytes, s.start_us) for s in found] == [
        ("send", "pp", PREFILL, 16, 20),
        ("all_reduce", "tp", DECODE, 64, 25),
    ]


def test_the_kernels_of_one_graph_are_matched_in_the_order_they_ran() -> None:
    kernels = [kernel(NCCL_ALL_REDUCE, start, start + 1, launched=5.0) for start in (30, 10, 20)]
    found = spans(kernels, {0: [call("all_reduce", size) for size in (1, 2, 3)]})
    assert [(span.start_us, span.bytes) for span in found] == [(10, 1), (20, 2), (30, 3)]


def test_each_step_has_its_own_calls() -> None:
    kernels = [kernel(NCCL_ALL_REDUCE, 10 * step, 10 * step + 1, step=step) for step in (0, 1)]
    found = spans(kernels, {0: [call("all_reduce", 1)], 1: [call("all_reduce", 2)]})
    assert [(span.step, span.bytes) for span in found] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [call("all_reduce")],
        [call("all_reduce"), call("all_gather")],
        [call("send"), call("all_reduce")],
        [call("all_reduce"), call("send"), call("send")],
    ],
    ids=["no calls", "one too few", "another operation", "another order", "one too many"],
)
def test_where_kernels_and_calls_do_not_agree_no_call_was_seen(calls: list[Call]) -> None:
    """What ran is kept by its name alone, and what was called without times."""
    kernels = [kernel(NCCL_ALL_REDUCE, 0, 1), kernel(NCCL_SEND_RECV, 2, 3)]
    ran, called = spans(kernels, {0: calls})[:2], spans(kernels, {0: calls})[2:]
    assert [(s.kind, s.axis, s.call_phase, s.call_step, s.bytes) for s in ran] == [
        ("all_reduce", None, None, None, None),
        ("recv", None, None, None, None),
    ]
    assert [(s.kind, s.axis, s.when) for s in called] == [(c.op, c.axis, None) for c in calls]


def test_calls_without_any_kernel_in_their_step_are_kept() -> None:
    (unseen,) = spans([], {7: [call("all_gather", 16)]})
    assert (unseen.rank, unseen.phase, unseen.step, unseen.kind) == (3, DECODE, 7, "all_gather")
    assert (unseen.when, unseen.start_us, unseen.end_us) == (None, None, None)


def test_a_step_that_does_not_agree_leaves_the_others_alone() -> None:
    kernels = [kernel(NCCL_ALL_REDUCE, 10 * step, 10 * step + 1, step=step) for step in (0, 1)]
    found = spans(kernels, {1: [call("all_reduce", 2)]})
    assert [span.bytes for span in found] == [None, 2]


def test_a_call_names_the_step_whose_tokens_it_carries() -> None:
    kernels = [kernel(NCCL_ALL_REDUCE, 0, 1), kernel("ncclDevKernel_Broadcast_RING_LL", 2, 3)]
    tokens = Call("broadcast", "pp", 8, PREFILL, step=4)
    found = spans([replace(one, step=6) for one in kernels], {6: [call("all_reduce"), tokens]})
    assert [(s.kind, s.step, s.call_step) for s in found] == [
        ("all_reduce", 6, 6),
        ("broadcast", 6, 4),
    ]


def test_a_kernel_that_carries_out_anything_is_what_its_call_says_or_else_other() -> None:
    generic = kernel("ncclDevKernel_Generic_1")
    assert [span.kind for span in spans([generic], {0: [call("broadcast")]})] == ["broadcast"]
    assert [span.kind for span in spans([generic])] == ["other"]


# -- reading a trace


class Trace:
    """Writes the JSON of a Chrome trace as torch's profiler does."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = [{"ph": "M", "name": "process_name"}]
        self._correlations = itertools.count(100)

    def add(self, category: str, name: str, start: float, end: float, **args: object) -> None:
        event = {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start}
        self.events.append({**event, "args": args} if args else event)

    def step(self, phase: str, number: int, start: float, end: float) -> None:
        self.add("user_annotation", f"step/{phase}/{number}", start, end)
        # The GPU's own copy of the annotation, which is not the host's time.
        self.add("gpu_user_annotation", f"step/{phase}/{number}", start + 500, end + 500)

    def launch(self, at: float, *kernels: tuple[str, float, float], how: str = "kernel") -> None:
        """One launch, and what it ran on the GPU: several kernels where it is a graph's."""
        number = next(self._correlations)
        api = "cudaGraphLaunch" if len(kernels) > 1 else "cudaLaunchKernel"
        self.add("cuda_runtime", api, at, at + 1, correlation=number)
        for name, start, end in kernels:
            self.add(how, name, start, end, correlation=number)

    def read(self, base_ns: int = 0) -> list[Kernel]:
        return read_kernels({"baseTimeNanoseconds": base_ns, "traceEvents": self.events})


def test_a_kernel_belongs_to_the_step_in_which_it_was_launched() -> None:
    trace = Trace()
    trace.step(PREFILL, 0, 10, 20)
    trace.step(DECODE, 1, 30, 40)
    trace.launch(12, (GEMM, 50, 55))  # it runs after both steps have ended on the host
    trace.launch(31, (NCCL_ALL_REDUCE, 60, 61))
    assert trace.read() == [
        Kernel(GEMM, PREFILL, 0, 12, 50, 55),
        Kernel(NCCL_ALL_REDUCE, DECODE, 1, 31, 60, 61),
    ]


def test_what_is_launched_outside_of_every_step_is_left_out() -> None:
    trace = Trace()
    trace.step(DECODE, 0, 10, 20)
    for at in (5, 25):
        trace.launch(at, (GEMM, 50, 55))
    for name in ("step", "step/a/b", "step/decode/1/2"):  # somebody else's annotations
        trace.add("user_annotation", name, 0, 100)
    trace.add("kernel", GEMM, 60, 61)  # a kernel whose launch was not seen
    trace.add("kernel", GEMM, 62, 63, correlation=7)
    assert trace.read() == []


def test_a_launch_at_the_very_start_or_end_of_a_step_is_inside() -> None:
    trace = Trace()
    trace.step(DECODE, 4, 10, 20)
    trace.launch(10, (GEMM, 11, 12))
    trace.launch(20, (GEMM, 21, 22))
    assert [found.step for found in trace.read()] == [4, 4]


def test_every_kernel_of_a_replayed_graph_belongs_to_the_step_of_its_launch() -> None:
    trace = Trace()
    ran = [(GEMM, 50, 52), (NCCL_ALL_REDUCE, 52, 55), (GEMM, 55, 57), (NCCL_ALL_REDUCE, 57, 59)]
    for number, offset in ((0, 0), (1, 100)):
        trace.step(DECODE, number, 10 + offset, 20 + offset)
        trace.launch(11 + offset, *((name, a + offset, b + offset) for name, a, b in ran))
    kernels = trace.read()
    assert [(found.step, found.launched) for found in kernels] == [(0, 11)] * 4 + [(1, 111)] * 4
    calls = {step: [call("all_reduce", 1), call("all_reduce", 2)] for step in (0, 1)}
    communication = [span for span in spans(kernels, calls) if span.kind != COMPUTE]
    assert [(s.step, s.start_us, s.bytes) for s in communication] == [
        (0, 52, 1),
        (0, 57, 2),
        (1, 152, 1),
        (1, 157, 2),
    ]


@pytest.mark.parametrize("category", ["kernel", "gpu_memcpy", "gpu_memset"])
def test_copies_and_fills_count_as_kernels(category: str) -> None:
    trace = Trace()
    trace.step(DECODE, 0, 10, 20)
    trace.launch(11, ("Memcpy PtoP (Device -> Device)", 30, 31), how=category)
    assert len(trace.read()) == 1


def test_launches_by_the_driver_interface_are_seen() -> None:
    trace = Trace()
    trace.step(DECODE, 0, 10, 20)
    trace.add("cuda_driver", "cuLaunchKernelEx", 11, 12, correlation=5)
    trace.add("kernel", "_all_reduce_kernel", 13, 14, correlation=5)
    assert [found.name for found in trace.read()] == ["_all_reduce_kernel"]


def test_times_are_on_the_clock_of_the_node() -> None:
    trace = Trace()
    trace.step(DECODE, 0, 10, 20)
    trace.launch(11, (GEMM, 30, 32))
    (found,) = trace.read(base_ns=5_000_000)
    assert (found.launched, found.start, found.end) == (11, 5030, 5032)


def test_times_keep_their_nanoseconds() -> None:
    """In microseconds since 1970 a float has a quarter of one to spare."""
    trace = Trace()
    trace.step(DECODE, 0, 10, 20)
    trace.launch(11, (GEMM, 30.125, 38.127))
    (found,) = trace.read(base_ns=1_766_000_000_000_000_000)
    assert found.end - found.start == pytest.approx(8.002, abs=0.004)
