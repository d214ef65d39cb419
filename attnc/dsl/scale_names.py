"""The scales that 8-bit tensors come with."""

from __future__ import annotations

# e4m3 of the OCP 8-bit floating point specification: 4 bits of exponent, 3 of fraction, up to 448
SCALED_DTYPE = "e4m3"
# what multiplies each tensor, by query head or by key/value head
SCALES = {"k_scale": "hkv", "q_scale": "h", "v_scale": "hkv"}
