"""What the makers say their GPUs can do. Dense figures, without sparsity."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.analysis.roofline import DATASHEET, Ceilings

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sheet:
    """hbm: GB/s. bf16, fp8, fp32: TFLOP/s. nvlink: GB/s, both directions together, over `links`
    links; 0 without. l2: MiB, of all caches between the memory and the multiprocessors together.
    None: no source is known."""

    hbm: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    fp32: float | None = None
    nvlink: float | None = None
    links: int | None = None
    l2: float | None = None


# Words of the name that NVML or torch gives -> figures, the more specific name first. Figures that
# NVIDIA gives with sparsity are halved. L2, where NVIDIA's papers do not give it, is what CUDA
# reports of the card.
SHEETS = {
    # "NVIDIA Blackwell" datasheet, of a GPU of GB200 NVL72 and of HGX B200. links: MLCommons,
    # inference v6.0, systems nebius_b200_n1 and GB200-NVL72. L2: CUDA of B200
    # (github.com/pytorch/ao/pull/4002); of GB200 as of B200, the same chip.
    "GB200": Sheet(8000, 2500, 5000, 80, 1800, 18, 126.5),
    "B200": Sheet(7700, 2250, 4500, 75, 1800, 18, 126.5),
    # "NVIDIA H200 Tensor Core GPU" datasheet; bf16 to a tenth as of H100, the same chip. L2: CUDA;
    # of NVL as of SXM.
    "H200 NVL": Sheet(4800, 835.5, 1670.5, 60, 900, 18, 60),
    "H200": Sheet(4800, 989.4, 1979, 67, 900, 18, 60),
    # "NVIDIA H100 Tensor Core GPU" datasheet, "H100 PCIe" and "H100 NVL GPU Product Brief"
    # (PB-11133, PB-11773); hbm and bf16 of
    # SXM and PCIe, L2: "NVIDIA H100 Tensor Core GPU Architecture" white paper. L2 of NVL: CUDA.
    "H100 PCIe": Sheet(2039, 756, 1513, 51, 600, 12, 50),
    "H100 NVL": Sheet(3938, 835.5, 1670.5, 60, 600, 12, 60),
    "H100": Sheet(3352, 989.4, 1979, 67, 900, 18, 50),
    # No sheet of NVIDIA's is public. SXM: the chip and the memory of H100 with less NVLink and FP64
    # (DeepSeek-AI, "Insights into DeepSeek-V3", ISCA 2025, section 4.1).
    "H800 PCIe": Sheet(),
    "H800 NVL": Sheet(),
    "H800": Sheet(3352, 989.4, 1979, 67, 400, None, 50),
    # No sheet of NVIDIA's is public. hbm, bf16: hardware_spec.md of
    # github.com/citsjtu2020/LLM-Prof; fp8, fp32, nvlink: press reports of the sheet for partners,
    # November 2023. links: `nvidia-smi topo` of a node (NV18). L2: press reports.
    "H20-3e": Sheet(4800, 148, 296, 44, 900, 18, 60),
    "H20": Sheet(4022, 148, 296, 44, 900, 18, 60),
    # "NVIDIA A100 Tensor Core GPU" datasheet; L2: "NVIDIA A100 Tensor Core GPU Architecture" white
    # paper.
    "A100-SXM4-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40),
    "A100-PCIE-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40),
    "A100 80GB PCIe": Sheet(1935, 312, None, 19.5, 600, 12, 40),
    "A100": Sheet(2039, 312, None, 19.5, 600, 12, 40),
    # "NVIDIA L40S" datasheet, which gives bf16 as 362.05 without and 733 with sparsity. L2: CUDA.
    "L40S": Sheet(864, 362.05, 733, 91.6, 0, 0, 96),
    # "NVIDIA L4" datasheet: bf16 and fp8 half of 242 and 485. L2: TechPowerUp's GPU database.
    "L4": Sheet(300, 121, 242.5, 30.3, 0, 0, 48),
    # "NVIDIA RTX 6000 Ada Generation" datasheet: fp8 half, bf16 a quarter of its 1457. L2: "NVIDIA
    # Ada GPU Architecture" paper.
    "RTX 6000 Ada": Sheet(960, 364.2, 728.5, 91.1, 0, 0, 96),
    # "NVIDIA RTX Blackwell GPU Architecture" paper, table 3: bf16 with FP32 accumulation, fp8 with
    # FP16 accumulation, which is the higher of its two; fp32: its 21,760 cores x 2 x 2.407 GHz. L2:
    # reviews of the card. D and laptop versions are other cards.
    "RTX 5090 D": Sheet(),
    "RTX 5090 Laptop": Sheet(),
    "RTX 5090": Sheet(1792, 209.5, 838, 104.8, 0, 0, 96),
    # "NVIDIA RTX PRO 6000 Blackwell Workstation Edition" and "... Server Edition" datasheets, of
    # which the second gives no dense bf16. bf16 of Workstation, L2 (of the chip): "NVIDIA RTX PRO
    # Blackwell GPU Architecture" paper.
    "RTX PRO 6000 Blackwell Workstation": Sheet(1792, 503.8, None, 125, 0, 0, 128),
    "RTX PRO 6000 Blackwell Server": Sheet(1597, None, None, 120, 0, 0, 128),
    # "AMD Instinct MI300X Accelerator" data sheet. Its links are Infinity Fabric, not NVLink. l2:
    # 32 of L2 and 256 of Infinity Cache ("AMD GPU specifications", rocm.docs.amd.com).
    "MI300X": Sheet(5325, 1307.4, 2614.9, 163.4, 0, 0, 288),
}


def sheet(device_name: str | None) -> Sheet | None:
    """The data sheet of a GPU by the name that NVML or torch gives it, None where it is not known
    here."""
    name = name_of(device_name)
    return None if name is None else SHEETS[name]


def name_of(device_name: str | None) -> str | None:
    """Under which name a GPU is in the table."""
    return next((words for words in SHEETS if _names(words, device_name or "")), None)


def _names(words: str, name: str) -> bool:
    """Whether `words` are whole words of the name: B200 is none of "NVIDIA GB200"."""
    return re.search(rf"\b{re.escape(words)}\b", name, re.IGNORECASE) is not None


def ceilings(device_name: str | None) -> Ceilings | None:
    """Ceilings of a GPU from its data sheet; None for a CPU, and for a GPU of which the memory's
    rate, or what may stay in its caches, is not known here."""
    found = sheet(device_name)
    if found is None or found.hbm is None or found.l2 is None:
        return None
    rates = {"bfloat16": found.bf16, "float32": found.fp32, "float8_e4m3fn": found.fp8}
    return Ceilings(
        found.hbm * 1e9,
        {dtype: rate * 1e12 for dtype, rate in rates.items() if rate},
        int(found.l2 * MIB),
        DATASHEET,
    )
