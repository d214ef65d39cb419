"""The devices the planner knows: SRAM a program may use, and the rates of the roofline.

Sources: NVIDIA's CUDA programming guide, table "technical specifications per compute capability"
(shared memory a block, registers a multiprocessor); NVIDIA's A100, H100, H200, L4, B200 and
RTX 4090 datasheets and AMD's MI300X datasheet (dense bf16 rate, memory bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.errors import PlanError


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU model as the planner sees it.

    `sram_bytes` a program, `registers` a thread at most, `tflops` dense bf16, `tbps` of HBM.
    """

    name: str
    target: str
    sram_bytes: int
    sms: int
    tflops: float
    tbps: float
    warp_size: int = 32
    registers: int = 255
    register_file: int = 65536

    @property
    def min_columns(self) -> int:
        """The fewest columns of a row-major right operand that the compiler gets right.

        On sm_90, Triton 3.6 makes wrong code for some warp-group products whose right operand has
        16 or 32 columns (benchmarks/NOTES.md, `Narrow right operands`): such tiles are padded.
        """
        return 64 if self.target == "cuda:90" else 16

    @property
    def capability(self) -> int:
        """The CUDA capability as one number, 90 for sm_90; 0 for other backends."""
        backend, arch = self.target.split(":")
        return int(arch) if backend == "cuda" else 0

    @property
    def byte_products(self) -> bool:
        """Whether it multiplies e4m3: NVIDIA's do since sm_89; AMD's MI300 has another e4m3."""
        return self.capability >= 89

    def dots(self, precision: str) -> str:
        """How dots of fp32 tensors are made of those asked for `tf32x3`, or for `tf32`.

        AMD's matrix cores multiply fp32 as it is, and Triton splits no product there; gfx942 alone
        has a tf32 too.
        """
        if self.capability or (self.target == "hip:gfx942" and precision == "tf32"):
            return precision
        return "ieee"

    def with_sram(self, sram_bytes: int) -> Device:
        """The same device with another SRAM budget."""
        return replace(self, sram_bytes=sram_bytes)


DEVICES = {
    device.name: device
    for device in (
        Device("h100", "cuda:90", 232448, 132, 989.0, 3.35),
        Device("h200", "cuda:90", 232448, 132, 989.0, 4.8),
        Device("a100", "cuda:80", 166912, 108, 312.0, 2.04),
        Device("l4", "cuda:89", 101376, 58, 121.0, 0.3),
        Device("rtx4090", "cuda:89", 101376, 128, 165.0, 1.01),
        Device("b200", "cuda:100", 232448, 148, 2250.0, 8.0),
        Device("mi300x", "hip:gfx942", 65536, 304, 1307.0, 5.3, warp_size=64, registers=512),
    )
}


def device_named(name: str) -> Device:
    """Look a device up; an unknown name lists the known ones."""
    try:
        return DEVICES[name.lower()]
    except (AttributeError, KeyError):
        raise PlanError(
            f"unknown device {name!r}",
            notes=(f"known devices: {', '.join(DEVICES)}",),
            hints=(
                "name one of them, and give its budget with --sram BYTES if it differs",
                "an op that is given none plans for the device of each call's tensors",
            ),
        ) from None
