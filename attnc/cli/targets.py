"""The device that a plan for a target is made for.

Sources: NVIDIA's CUDA programming guide, "technical specifications per compute capability", the
most shared memory a block may use; AMD's ISA guides, the LDS of a workgroup.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.autotune.target import Target
from attnc.codegen.device import DEVICES, Device

# targets that no device of the planner's table has: the device whose rates are nearest, and SRAM
_NEAREST = {
    "cuda:86": ("l4", 101376),
    "cuda:87": ("a100", 166912),
    "cuda:103": ("b200", 232448),
    "cuda:120": ("rtx4090", 101376),
    "cuda:121": ("rtx4090", 101376),
    "hip:gfx90a": ("mi300x", 65536),
    "hip:gfx950": ("mi300x", 163840),
    "hip:gfx1100": ("mi300x", 65536),
    "hip:gfx1201": ("mi300x", 65536),
}


def device_of_target(name: str) -> Device:
    """The planner's device of a target, the first of its table where several have it.

    Raises:
        UsageError: no target is called that.
    """
    target = Target.parse(name)
    for device in DEVICES.values():
        if device.target == str(target):
            return device
    nearest, sram_bytes = _NEAREST[str(target)]
    return replace(
        DEVICES[nearest],
        name=str(target),
        target=str(target),
        sram_bytes=sram_bytes,
        warp_size=target.warp_size,
    )
