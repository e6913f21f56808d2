"""What the makers say of the size of their GPUs: memory, power, and links that are not NVLink."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """memory: GB of 10^9 bytes. power: W, the limit. pcie: GB/s in one direction, of cards without
    NVLink. network: GB/s in one direction for each GPU, of the maker's own server. None: no source
    is known."""

    memory: float | None = None
    power: float | None = None
    pcie: float | None = None
    network: float | None = None


# Names as in `datasheet.SHEETS`, from the sheets named there unless it says otherwise. network: the
# datasheets of DGX B200, DGX H200, DGX H100 (8 ConnectX-7 of 400 Gb/s for 8 GPUs), DGX A100 (8 of
# 200 Gb/s) and DGX GB200 (72 of 400 Gb/s for 72 GPUs).
CAPACITIES = {
    # memory: 13.4 TB of 72 GPUs, 1.44 TB of the 8 GPUs of DGX B200.
    "GB200": Capacity(186, None, None, 50),
    "B200": Capacity(180, 1000, None, 50),
    "H200 NVL": Capacity(141, 600),
    # memory: what NVML reports (docs/results/2xh200, 2xh100); the sheets say 141 and 80 GB.
    "H200": Capacity(150.754820096, 700, None, 50),
    "H100 PCIe": Capacity(80, 350),
    "H100 NVL": Capacity(94, 400),
    "H100": Capacity(85.520809984, 700, None, 50),
    # "NVIDIA A100 Tensor Core GPU" datasheet.
    "A100-SXM4-40GB": Capacity(40, 400, None, 25),
    "A100-PCIE-40GB": Capacity(40, 250),
    "A100 80GB PCIe": Capacity(80, 300),
    "A100": Capacity(80, 400, None, 25),
    # PCIe 4.0 x16 and 5.0 x16: 64 and 128 GB/s in both directions together.
    "L40S": Capacity(48, 350, 32),
    "L4": Capacity(24, 72, 32),
    "RTX 6000 Ada": Capacity(48, 300, 32),
    "RTX 5090": Capacity(32, 575, 64),
    "RTX PRO 6000 Blackwell Workstation": Capacity(96, 600, 64),
    "RTX PRO 6000 Blackwell Server": Capacity(96, 600, 64),
    "MI300X": Capacity(192, 750),
}


def capacity(name: str) -> Capacity:
    """That of a GPU by its name in `datasheet.SHEETS`; nothing is known of one that is not
    here."""
    return CAPACITIES.get(name, Capacity())
