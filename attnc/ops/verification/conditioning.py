"""How far fp32 may leave an output whose row is normalised by weights that cancel.

A state meets a polynomial of q.k monomial by monomial: a weight of 1e-6 is then the sum of terms
near 1, each rounded. A row whose only key has a weight near 0 divides that rounding by itself, in
any implementation that keeps a state, while the formula's own w / w is exactly 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attnc.dsl.feature import FeatureMap
from attnc.dsl.variant import Variant
from attnc.ops.reference.attend import attend

# roundings of one sum over monomials, in units of fp32's last place
_ROUNDINGS = 8
_LAST_PLACE = 2.0**-24


def allowance(
    variant: Variant, q: Tensor, k: Tensor, v: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """What rounding may change in each row of an output that comes from a state: [B, TQ, HQ, 1].

    None where no weights cancel: a row that is not normalised, or a map of channels.
    """
    feature = variant.feature_map
    polynomial = not variant.terms and feature.kind == "polynomial"
    if variant.normalize != "sum" or not polynomial:
        return None
    positive = replace(feature, coefficients=tuple(abs(part) for part in feature.coefficients))
    ones = torch.ones_like(v[..., :1])
    added = _sums(_with(variant, positive), q.abs(), k.abs(), ones, tensors)
    left = _sums(_with(variant, feature), q, k, ones, tensors).abs()
    size = _ROUNDINGS * _LAST_PLACE * float(v.abs().max())
    return torch.where(added > 0, size * added / left, 0.0)


def _sums(
    variant: Variant, q: Tensor, k: Tensor, ones: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    return attend(variant, q, k, ones, tensors).out


def _with(variant: Variant, feature: FeatureMap) -> Variant:
    """The sums of weights alone, of a weight that stands in place of a variant's own."""
    meaning = replace(variant.meaning, feature_map=feature, normalize="none", value=None)
    parts: dict[str, object] = {name: getattr(variant, name) for name in Variant.__slots__}
    return Variant.from_checked({**parts, "meaning": meaning})
