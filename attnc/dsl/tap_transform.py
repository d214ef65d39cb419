"""What becomes of a filter's taps before they are used: declared as data, in order.

    smooth(width)   the mean of `width` neighbouring taps, an odd number; zeros lie beyond
    squash(lambda)  sign(w) * max(|w| - lambda, 0): small taps vanish, and the filter is sparse
    dropout(p)      in training alone: each tap is 0 with probability p, the others are / (1 - p)

Source: Simple Hardware-Efficient Long Convolutions (arXiv 2302.06646), section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from attnc.dsl.fields import Fields
from attnc.dsl.limits import MAX_TEXT

_CALL = re.compile(r"\s*([a-z]+)\s*\(\s*([0-9][0-9.eE+-]*)\s*\)\s*\Z")
_NAMES = ("smooth", "squash", "dropout")
_MOST_TRANSFORMS, _WIDEST = 8, 4095


@dataclass(frozen=True, slots=True)
class TapTransform:
    """One transform of the taps and its number."""

    name: str
    value: float

    def __str__(self) -> str:
        number = int(self.value) if self.name == "smooth" else self.value
        return f"{self.name}({number})"


def tap_transforms(fields: Fields) -> tuple[TapTransform, ...]:
    """The checked transforms of a convolution.

    Raises:
        FieldError: what is no transform, or a number that it does not take.
    """
    value = fields.transforms
    label = f"transforms of {fields.name!r}"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise fields.refuse(
            "transforms",
            f"{label} is {str(value)[:60]!r}, not a list",
            hints=('write transforms = ["smooth(7)", "squash(0.003)"]',),
        )
    texts = list(value)
    if len(texts) > _MOST_TRANSFORMS:
        raise fields.refuse("transforms", f"{label} are {len(texts)}, at most {_MOST_TRANSFORMS}")
    return tuple(_transform(fields, label, text) for text in texts)


def _transform(fields: Fields, label: str, text: object) -> TapTransform:
    shown = str(text)[:60]
    match = _CALL.match(text) if isinstance(text, str) and len(text) <= MAX_TEXT else None
    try:
        number = float(match.group(2)) if match else None
    except ValueError:
        number = None
    if match is None or number is None or match.group(1) not in _NAMES:
        raise fields.refuse(
            "transforms",
            f"{label} has {shown!r}, which is no transform",
            notes=("transforms are smooth(width), squash(lambda) and dropout(p), p a number",),
        )
    found = TapTransform(match.group(1), number)
    needs = _refusal(found)
    if needs:
        raise fields.refuse("transforms", f"{label} has {shown!r}: {needs}")
    return found


def _refusal(transform: TapTransform) -> str:
    """What the number of a transform has to be, empty where it is."""
    value = transform.value
    if transform.name == "smooth" and not (value % 2 == 1 and value <= _WIDEST):
        return f"a width is an odd number of taps, at most {_WIDEST}"
    if transform.name == "squash" and value == float("inf"):
        return "a threshold is a finite number"
    if transform.name == "dropout" and value >= 1:
        return "a probability of dropping is less than 1"
    return ""
