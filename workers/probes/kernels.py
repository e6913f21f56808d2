"""Which kernels communicate, known by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from workers.backends import ANY_OPERATION, NCCL_KERNELS, CommunicationKernel

# One and the same kernel reduces to all or, by its fourth template argument, scatters.
SYMMETRIC = (
    CommunicationKernel(r"two_shot_all_reduce", ("reduce_scatter", "all_reduce")),
    CommunicationKernel(r"one_shot_all_reduce", ("all_reduce",)),
    CommunicationKernel(r"multimem_all_gather", ("all_gather",)),
    CommunicationKernel(r"multimem_", ("all_reduce",)),
)
# FlashInfer and TensorRT-LLM. Their kernels also do the norm, but for the instances that are plain.
FUSED = (
    CommunicationKernel(r"AllReduceFusionPattern\)0\b", ("all_reduce",)),
    CommunicationKernel(r"oneshotAllreduceFusionKernel<[^,]*,[^,]*, false", ("all_reduce",)),
    CommunicationKernel(r"all_?reduce_?fusion", ("all_reduce",), fused=True),
    CommunicationKernel(r"rmsNormLamport", ("all_reduce",), fused=True),
    CommunicationKernel(r"all_?reduce\w*norm|norm\w*all_?reduce", ("all_reduce",), fused=True),
    CommunicationKernel(r"(gemm|matmul)\w*all_?reduce", ("all_reduce",), fused=True),
    CommunicationKernel(r"(gemm|matmul)\w*reduce_?scatter", ("reduce_scatter",), fused=True),
    CommunicationKernel(r"all_?gather\w*(gemm|matmul)", ("all_gather",), fused=True),
)
NVSHMEM = (
    CommunicationKernel(r"rdxn\w*_on_stream", ("all_reduce",)),
    CommunicationKernel(r"fcollect\w*_on_stream", ("all_gather",)),
    CommunicationKernel(r"reducescatter_on_stream", ("reduce_scatter",)),
    CommunicationKernel(r"broadcast_on_stream", ("broadcast",)),
    CommunicationKernel(r"(alltoall|barrier|sync)\w*_on_stream", ("other",)),
    CommunicationKernel(r"nvshmem", ANY_OPERATION),
)
KNOWN = (
    # What torch.compile makes is named after the operations around it and computes.
    CommunicationKernel(r"^triton_(poi|red|per|tem)_fused", ()),
    *FUSED,
    *SYMMETRIC,
    # vLLM's custom all-reduce, in one stage and in two.
    CommunicationKernel(r"cross_device_reduce_", ("all_reduce",)),
    *NVSHMEM,
    # Transformer Engine's.
    CommunicationKernel(r"userbuffers", ANY_OPERATION),
    # Kernels of any other name, as those written in Triton.
    CommunicationKernel(r"all_?reduce", ("all_reduce",)),
    CommunicationKernel(r"all_?gather", ("all_gather",)),
    CommunicationKernel(r"reduce_?scatter", ("reduce_scatter",)),
    # A copy from one GPU's memory to another's.
    CommunicationKernel(r"Memcpy PtoP", ("send", "recv", "all_gather", "broadcast", "other")),
)
COMPUTES = CommunicationKernel("", ())


@dataclass(frozen=True, slots=True)
class Registry:
    """The kernels that are known to communicate; the first that fits a name counts."""

    kernels: Sequence[CommunicationKernel]
    _found: dict[str, CommunicationKernel] = field(default_factory=dict)

    @classmethod
    def beside(cls, declared: Iterable[CommunicationKernel]) -> Registry:
        """What a backend declares, before NCCL's kernels and those that are known."""
        return cls((*declared, *NCCL_KERNELS, *KNOWN))

    def of(self, name: str) -> CommunicationKernel:
        """What a kernel of this name does; without operations where it computes."""
        if name not in self._found:
            self._found[name] = next(
                (one for one in self.kernels if re.search(one.pattern, name, re.IGNORECASE)),
                COMPUTES,
            )
        return self._found[name]
