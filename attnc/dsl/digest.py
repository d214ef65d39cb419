"""The digest of a variant: sha256 of its meaning, however it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnc.dsl.canonical import canonical_text

if TYPE_CHECKING:
    from attnc.dsl.variant import Variant


def digest_of(facts: Mapping[str, object]) -> str:
    """sha256 of facts in JSON, keys sorted."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def meaning_facts(variant: Variant) -> dict[str, object]:
    """The meaning of a variant, or of a term, in plain values; a field left out is not there."""
    written = variant.feature_map.expression
    facts: dict[str, object] = {
        "feature_map": str(variant.feature_map) if written is None else canonical_text(written),
        "scale": str(variant.scale),
        "score": canonical_text(variant.score),
        "mask": str(variant.mask_form),
        "log_decay": None if variant.log_decay is None else canonical_text(variant.log_decay),
        "normalize": variant.normalize,
        "chunk": variant.chunk,
        "declared": declared_facts(variant),
    }
    for name in ("value", "sink", "factor"):
        expression = getattr(variant, name)
        if expression is not None:
            facts[name] = canonical_text(expression)
    if variant.scaled:
        facts["scaled"] = True
    return facts


def declared_facts(variant: Variant) -> list[list[object]]:
    """The declared tensors that a variant reads."""
    used = variant.used
    return sorted(
        [tensor.name, list(tensor.shape), tensor.grad, tensor.kind]
        for tensor in (*variant.params, *variant.inputs)
        if tensor.name in used
    )
