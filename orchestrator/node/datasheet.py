"""What the makers say their GPUs can do, for nodes that were not calibrated. Dense figures, without
sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.analysis.bounds import DATASHEET, Ceilings

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sheet:
    """hbm: GB/s. bf16, fp8, fp32: TFLOP/s. nvlink: GB/s, both directions together, over `links`
    links; 0 without. l2: MiB."""

    hbm: float
    bf16: float
    fp8: float | None
    fp32: float
    nvlink: float
    links: int
    l2: int


# Part of the name that NVML gives -> figures, the more specific name first; "NVIDIA H200", as H200
# is also a part of "NVIDIA GH200". Figures that NVIDIA gives with sparsity are halved. L2, where
# NVIDIA's papers do not give it, is what CUDA reports of the card.
SHEETS = {
    # "NVIDIA H200 Tensor Core GPU" datasheet; bf16 to a tenth as of H100, the same chip. L2: CUDA;
    # of NVL as of SXM.
    "H200 NVL": Sheet(4800, 835.5, 1670.5, 60, 900, 18, 60),
    "NVIDIA H200": Sheet(4800, 989.4, 1979, 67, 900, 18, 60),
    # "NVIDIA H100 Tensor Core GPU" datasheet, "H100 PCIe" and "H100 NVL GPU Product Brief"
    # (PB-11133, PB-11773); hbm and bf16 of
    # SXM and PCIe, L2: "NVIDIA H100 Tensor Core GPU Architecture" white paper. L2 of NVL: CUDA.
    "H100 PCIe": Sheet(2039, 756, 1513, 51, 600, 12, 50),
    "H100 NVL": Sheet(3938, 835.5, 1670.5, 60, 600, 12, 60),
    "H100": Sheet(3352, 989.4, 1979, 67, 900, 18, 50),
    # "NVIDIA A100 Tensor Core GPU" datasheet; L2: "NVIDIA A100 Tensor Core GPU Architecture" white
    # paper.
    "A100-SXM4-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40),
    "A100-PCIE-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40),
    "A100 80GB PCIe": Sheet(1935, 312, None, 19.5, 600, 12, 40),
    "A100": Sheet(2039, 312, None, 19.5, 600, 12, 40),
    # "NVIDIA L40S" datasheet, which gives bf16 as 362.05 without and 733 with sparsity. L2: CUDA.
    "L40S": Sheet(864, 362.05, 733, 91.6, 0, 0, 96),
    # "NVIDIA RTX 6000 Ada Generation" datasheet: fp8 half, bf16 a quarter of its 1457. L2: "NVIDIA
    # Ada GPU Architecture" paper.
    "RTX 6000 Ada": Sheet(960, 364.2, 728.5, 91.1, 0, 0, 96),
}


def sheet(device_name: str | None) -> Sheet | None:
    """The data sheet of a GPU by the name that NVML or torch gives it, None where it is not known
    here."""
    return next(
        (found for part, found in SHEETS.items() if part.lower() in (device_name or "").lower()),
        None,
    )


def ceilings(device_name: str | None) -> Ceilings | None:
    """Ceilings of a GPU from its data sheet; None for a CPU or a GPU that is not known here."""
    found = sheet(device_name)
    if found is None:
        return None
    rates = {"bfloat16": found.bf16, "float32": found.fp32, "float8_e4m3fn": found.fp8}
    return Ceilings(
        found.hbm * 1e9,
        {dtype: rate * 1e12 for dtype, rate in rates.items() if rate},
        found.l2 * MIB,
        DATASHEET,
    )
