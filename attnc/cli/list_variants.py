"""`attnc list`: the shipped variants. It imports the declarations alone: no algebra, no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.resources import files

from attnc.cli.screen import console, table
from attnc.cli.status import OK
from attnc.dsl.convolution import Convolution
from attnc.dsl.text import to_text
from attnc.dsl.variant import Variant
from attnc.ops.shipped import shipped


def list_variants(*, as_json: bool) -> int:
    """Print a table, or a JSON array with one object a line."""
    variants = shipped()
    if as_json:
        lines = ",\n".join(json.dumps(as_object(variant)) for variant in variants.values())
        sys.stdout.write(f"[\n{lines}\n]\n")
        return OK
    rows = table("name", "family", "weight, decay a token", "mask", "normalize")
    # a name is typed again, and a broken one is none
    rows.columns[0].style, rows.columns[0].no_wrap = "bold", True
    for variant in variants.values():
        rows.add_row(
            variant.name, variant.family, _weight(variant), to_text(variant.mask), variant.normalize
        )
    screen = console()
    screen.print(rows)
    screen.print("attnc explain NAME says what becomes of one; attnc check FILE reads your own.")
    return OK


def as_object(variant: Variant) -> dict[str, object]:
    """One shipped variant as JSON."""
    return {
        "name": variant.name,
        "about": variant.about,
        "paper": None if variant.paper is None else asdict(variant.paper),
        "family": variant.family,
        "mask": to_text(variant.mask),
        **(_filter(variant) if isinstance(variant, Convolution) else _attention(variant)),
        "params": [tensor.name for tensor in variant.params],
        "inputs": [tensor.name for tensor in variant.inputs],
        "summary": variant.summary,
        "digest": variant.digest,
        "file": str(files("attnc") / "ops" / "variants" / f"{variant.name}.toml"),
    }


def _attention(variant: Variant) -> dict[str, object]:
    return {
        "feature_map": _feature_maps(variant),
        "scale": str(variant.scale),
        "score": to_text(variant.score),
        "decay": _decay(variant),
        "normalize": variant.normalize,
        "dim": None if variant.dim is None else {"qk": variant.dim.qk, "v": variant.dim.v},
    }


def _filter(variant: Convolution) -> dict[str, object]:
    read = {field: to_text(ref) for field, ref in variant.filter.refs}
    fields = ("weight", "skip", "pregate", "postgate", "outer", "inner")
    transforms = [str(transform) for transform in variant.filter.transforms]
    return {**{field: read.get(field) for field in fields}, "transforms": transforms}


def _feature_maps(variant: Variant) -> str:
    return " + ".join(str(part.feature_map) for part in variant.terms or (variant,))


def _weight(variant: Variant) -> str:
    if isinstance(variant, Convolution):
        return ", ".join(map(str, (to_text(variant.filter.weight), *variant.filter.transforms)))
    weights = " + ".join(map(_of_score, variant.terms or (variant,)))
    return ", ".join(filter(None, (weights, _decay(variant))))


def _of_score(part: Variant) -> str:
    score = to_text(part.score)
    if part.family == "softmax":
        return f"exp({score})"
    return str(part.feature_map) if score == "s" else f"{part.feature_map} of {score}"


def _decay(variant: Variant) -> str | None:
    return None if variant.log_decay is None else f"exp({to_text(variant.log_decay)})"
