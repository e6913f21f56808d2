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
    memory: its size, in the GB that makers write, of 2^30 bytes. pcie: GB/s, both directions
    together. power: W, the limit. network: GB/s, one direction, of its share of the network cards
    of the maker's own server. usable: MiB of the memory that `nvidia-smi` gives, with error
    correction on where that is how it is delivered: GDDR6 keeps the bits in the memory itself.
    bridge: cards that an NVLink bridge joins; None: NVLink joins all of a node, or there is none.
    node: GPUs of a node, which is what one NVLink domain joins. None: no source is known."""

    hbm: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    fp32: float | None = None
    nvlink: float | None = None
    links: int | None = None
    l2: float | None = None
    memory: int | None = None
    pcie: float | None = None
    power: float | None = None
    network: float | None = None
    usable: int | None = None
    bridge: int | None = None
    node: int = 8

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of memory, before what a driver keeps; None where unknown."""
        return None if self.memory is None else self.memory << 30

    @property
    def usable_bytes(self) -> int | None:
        """Bytes that programs see; all of its memory where that is not known."""
        return self.memory_bytes if self.usable is None else self.usable << 20

    @property
    def host_link(self) -> float | None:
        """Bytes/s that it reads from main memory at most: PCIe's, one way; None where unknown."""
        return None if self.pcie is None else self.pcie / 2 * 1e9

    @property
    def link(self) -> float | None:
        """Bytes/s that it sends to other GPUs at most: NVLink's rate, else PCIe's, one way; None
        where unknown."""
        return self.host_link if self.nvlink == 0 else self.nvlink and self.nvlink / 2 * 1e9


# Words of the name that NVML or torch gives -> figures, the more specific name first. Figures that
# NVIDIA gives with sparsity are halved. L2, where NVIDIA's papers do not give it, is what CUDA
# reports of the card. memory, where no other source is named: huggingface.co/hardware, or the name
# of the card. pcie: 4.0 x16 as the sheet of L40S gives it, 5.0 x16 as that of H100 does. network:
# the datasheets of DGX B200, DGX H200 and DGX H100 (8 ConnectX-7 of 400 Gb/s for 8 GPUs), DGX A100
# (8 of 200 Gb/s) and DGX GB200 (72 of 400 Gb/s for 72 GPUs; its memory: 13.4 TB of 72 GPUs). node:
# HGX boards join 8, GB200 NVL72 is one NVLink domain of 72 ("NVIDIA Blackwell" datasheet). bridge:
# 2 cards ("NVIDIA A100" datasheet, PB-11133, PB-11773), H200 NVL up to 4 ("NVIDIA H200 Tensor Core
# GPU" datasheet: 2- or 4-way). usable of H100, H200: manifests of docs/results; of L40S, L4:
# `nvidia-smi` with ECC on, as AWS and Google deliver them (46068MiB, 23034MiB).
SHEETS = {
    # "NVIDIA Blackwell" datasheet, of a GPU of GB200 NVL72 and of HGX B200. links: MLCommons,
    # inference v6.0, systems nebius_b200_n1 and GB200-NVL72; memory of B200: the first of them. L2:
    # CUDA of B200 (github.com/pytorch/ao/pull/4002); of GB200 as of B200, the same chip.
    "GB200": Sheet(8000, 2500, 5000, 80, 1800, 18, 126.5, 186, network=50, node=72),
    "B200": Sheet(7700, 2250, 4500, 75, 1800, 18, 126.5, 180, 128, 1000, 50),
    # "NVIDIA H200 Tensor Core GPU" datasheet; bf16 to a tenth as of H100, the same chip. L2: CUDA;
    # of NVL as of SXM.
    # memory and pcie: MLCommons, inference v4.1, system H200-SXM-141GBx8_TRT_MaxQ.
    "H200 NVL": Sheet(4800, 835.5, 1670.5, 60, 900, 18, 60, 141, 128, 600, bridge=4),
    "H200": Sheet(4800, 989.4, 1979, 67, 900, 18, 60, 141, 128, 700, 50, 143771),
    # "NVIDIA H100 Tensor Core GPU" datasheet, "H100 PCIe" and "H100 NVL GPU Product Brief"
    # (PB-11133, PB-11773); hbm and bf16 of
    # SXM and PCIe, L2: "NVIDIA H100 Tensor Core GPU Architecture" white paper. L2 of NVL: CUDA;
    # its memory: massivegrid.com, "NVIDIA H100 vs H200".
    "H100 PCIe": Sheet(2039, 756, 1513, 51, 600, 12, 50, 80, 128, 350, bridge=2),
    "H100 NVL": Sheet(3938, 835.5, 1670.5, 60, 600, 12, 60, 94, 128, 400, bridge=2),
    "H100": Sheet(3352, 989.4, 1979, 67, 900, 18, 50, 80, 128, 700, 50, 81559),
    # No sheet of NVIDIA's is public. SXM: the chip and the memory of H100 with less NVLink and FP64
    # (DeepSeek-AI, "Insights into DeepSeek-V3", ISCA 2025, section 4.1).
    "H800 PCIe": Sheet(),
    "H800 NVL": Sheet(),
    "H800": Sheet(3352, 989.4, 1979, 67, 400, None, 50),
    # No sheet of NVIDIA's is public. hbm, bf16: hardware_spec.md of
    # github.com/citsjtu2020/LLM-Prof; fp8, fp32, nvlink: press reports of the sheet for partners,
    # November 2023. links: `nvidia-smi topo` of a node (NV18). L2: press reports.
    "H20-3e": Sheet(4800, 148, 296, 44, 900, 18, 60),
    "H20": Sheet(4022, 148, 296, 44, 900, 18, 60, 96),
    # "NVIDIA A100 Tensor Core GPU" datasheet; L2: "NVIDIA A100 Tensor Core GPU Architecture" white
    # paper.
    "A100-SXM4-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40, 40, 64, 400, 25),
    "A100-PCIE-40GB": Sheet(1555, 312, None, 19.5, 600, 12, 40, 40, 64, 250, bridge=2),
    "A100 80GB PCIe": Sheet(1935, 312, None, 19.5, 600, 12, 40, 80, 64, 300, bridge=2),
    "A100": Sheet(2039, 312, None, 19.5, 600, 12, 40, 80, 64, 400, 25),
    # "NVIDIA L40S" datasheet, which gives bf16 as 362.05 without and 733 with sparsity. L2: CUDA.
    "L40S": Sheet(864, 362.05, 733, 91.6, 0, 0, 96, 48, 64, 350, usable=46068),
    # "NVIDIA L4" datasheet: bf16 and fp8 half of 242 and 485. L2: TechPowerUp's GPU database.
    # memory: fpsbench.com, of the card.
    "L4": Sheet(300, 121, 242.5, 30.3, 0, 0, 48, 24, 64, 72, usable=23034),
    # "NVIDIA RTX 6000 Ada Generation" datasheet: fp8 half, bf16 a quarter of its 1457. L2: "NVIDIA
    # Ada GPU Architecture" paper.
    "RTX 6000 Ada": Sheet(960, 364.2, 728.5, 91.1, 0, 0, 96, 48, 64, 300),
    # "NVIDIA RTX Blackwell GPU Architecture" paper, table 3: bf16 with FP32 accumulation, fp8 with
    # FP16 accumulation, which is the higher of its two; fp32: its 21,760 cores x 2 x 2.407 GHz. L2:
    # reviews of the card. D and laptop versions are other cards.
    "RTX 5090 D": Sheet(),
    "RTX 5090 Laptop": Sheet(),
    "RTX 5090": Sheet(1792, 209.5, 838, 104.8, 0, 0, 96, 32, 128, 575),
    # "NVIDIA RTX PRO 6000 Blackwell Workstation Edition" and "... Server Edition" datasheets, of
    # which the second gives no dense bf16. bf16 of Workstation, L2 (of the chip): "NVIDIA RTX PRO
    # Blackwell GPU Architecture" paper. memory and pcie of Workstation: technical.city.
    "RTX PRO 6000 Blackwell Workstation": Sheet(1792, 503.8, None, 125, 0, 0, 128, 96, 128, 600),
    "RTX PRO 6000 Blackwell Server": Sheet(1597, None, None, 120, 0, 0, 128, 96, 128, 600),
    # "AMD Instinct MI300X Accelerator" data sheet. Its links are Infinity Fabric, not NVLink. l2:
    # 32 of L2 and 256 of Infinity Cache ("AMD GPU specifications", rocm.docs.amd.com). memory:
    # Tom's Hardware, of its launch.
    "MI300X": Sheet(5325, 1307.4, 2614.9, 163.4, 0, 0, 288, 192, None, 750),
}


# CUDA's compute capability by the first words of a name: developer.nvidia.com/cuda-gpus.
CAPABILITIES = {
    (12, 0): ("RTX 5090", "RTX PRO 6000"),
    (10, 0): ("GB200", "B200"),
    (9, 0): ("H200", "H100", "H800", "H20"),
    (8, 9): ("L40S", "L4", "RTX 6000 Ada"),
    (8, 0): ("A100",),
}
# Words by which a card differs from the one whose name it has; "mig": a slice of one.
FORMS = frozenset({"pcie", "nvl", "laptop", "d", "maxq", "3e", "mig"})
GIGABYTES = re.compile(r"(?<![a-z0-9.])(\d+) ?gb(?![a-z0-9])")


def sheet(device_name: str | None) -> Sheet | None:
    """The data sheet of a GPU by the name that NVML or torch gives it, None where it is not known
    here."""
    found = entry(device_name)
    return None if found is None else found[1]


def name_of(device_name: str | None) -> str | None:
    """Under which name a GPU is in the table."""
    found = entry(device_name)
    return None if found is None else found[0]


def entry(device_name: str | None) -> tuple[str, Sheet] | None:
    """Both. Of a name that people write too: "h100 pcie" and "rtx6000ada" are entries. Nothing of a
    name that says another size of the memory, or that names a second card."""
    name = (device_name or "").lower().replace("max-q", "maxq")
    words, rest = next(((one, left) for one in SHEETS if (left := _left(one, name))), (None, ""))
    if words is None or any(_left(other, rest) for other in SHEETS):
        return None
    sizes, memory = {int(size) for size in GIGABYTES.findall(name)}, SHEETS[words].memory
    return None if memory and sizes - {memory} else (words, SHEETS[words])


def _left(words: str, name: str) -> str | None:
    """What else a name says that has `words` as whole words, however they are joined; None where it
    has not, or that is another form: B200 is none of "NVIDIA GB200", and H20 none of "H20 PCIe"."""
    joined = r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", words.lower())))
    rest, found = re.subn(rf"(?<![a-z0-9]){joined}(?![a-z0-9])", " ", name)
    return f" {rest}" if found and not FORMS & {*re.split(r"[\s_-]+", rest)} else None


def capability(device_name: str | None) -> tuple[int, int] | None:
    """CUDA's compute capability of a GPU; None where it is not known here, or has none."""
    name = name_of(device_name) or ""
    return next((one for one, words in CAPABILITIES.items() if name.startswith(words)), None)


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
