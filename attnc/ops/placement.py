"""Which of the planner's devices a tensor lives on."""

from __future__ import annotations

import torch

from attnc.codegen.device import DEVICES, Device

_NAMES = ("h100", "h200", "a100", "l4", "b200")


def planner_device(device: torch.device) -> Device:
    """The planner's device of a torch device; one that is not in the table is read off the card."""
    if device.type == "cpu":
        return DEVICES["h100"]
    properties = torch.cuda.get_device_properties(device)
    known = planner_name(properties.name)
    if known:
        return DEVICES[known]
    capability = properties.major * 10 + properties.minor
    nearest = DEVICES["a100"] if capability < 90 else DEVICES["h100"]
    sram = getattr(properties, "shared_memory_per_block_optin", nearest.sram_bytes)
    return Device(
        name=properties.name,
        target=f"cuda:{capability}",
        sram_bytes=sram,
        sms=properties.multi_processor_count,
        tflops=nearest.tflops,
        tbps=nearest.tbps,
    )


def planner_name(model: str) -> str:
    """The planner's name of a device model, empty where it is not in the table."""
    name = model.lower().replace(" ", "")
    if "4090" in name:
        return "rtx4090"
    return next((known for known in _NAMES if known in name), "")


def device_model(device: torch.device) -> str:
    """The name of a device's model, as tuned kernels are stored for it."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_properties(device).name


def launcher_on(device: torch.device) -> str:
    """How kernels come to run on tensors of a device, as a request says it."""
    return "interpreted" if device.type == "cpu" else "compiled"
