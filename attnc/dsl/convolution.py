"""A convolution: a variant whose weight depends on i - j and the channel alone.

    u    = pregate * v                     o[t, c] = postgate * (sum_j M w[c, t - j] u[j, c] + D u)

q and k take no part. With learned factors `outer` and `inner`, F1 and F2, the sum is by transforms
of N = N1 * N2 points, of which that of u is no DFT any more, and W is the DFT of the taps in the
order k = k1 + N1 * k2:

    Z[k1, k2] = sum_n2 F2[k2, n2] exp(-2 pi i k1 n2 / N) sum_n1 F1[k1, n1] u[n1 * N2 + n2]
    sum       = Re of the unitary inverse DFT of W Z: the sum over j, where F1 and F2 are DFTs

Source: Simple Hardware-Efficient Long Convolutions (arXiv 2302.06646).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from attnc.dsl.expr import Expr, Ref
from attnc.dsl.offsets import tap_offsets
from attnc.dsl.tap_transform import TapTransform
from attnc.dsl.text import to_text
from attnc.dsl.variant import Variant


@dataclass(frozen=True, slots=True)
class Filter:
    """What a convolution is made of; `lowest` and `highest` bound the offset i - j, inclusive.

    A bound that is None is open: below, the taps are centred on offset 0; above, every tap counts.
    """

    weight: Ref
    skip: Ref | None
    pregate: Ref | None
    postgate: Ref | None
    lowest: int | None
    highest: int | None
    transforms: tuple[TapTransform, ...] = ()
    outer: Ref | None = None
    inner: Ref | None = None

    @property
    def learned(self) -> bool:
        """Whether v is transformed by declared factors in place of the DFT's."""
        return self.outer is not None

    @property
    def refs(self) -> tuple[tuple[str, Ref], ...]:
        """The declared tensors by the field that reads them."""
        found = (
            ("weight", self.weight), ("skip", self.skip), ("pregate", self.pregate),
            ("postgate", self.postgate), ("outer", self.outer), ("inner", self.inner),
        )  # fmt: skip
        return tuple((field, ref) for field, ref in found if ref is not None)

    def offsets(self, taps: int) -> tuple[int, int]:
        """The first and the last offset that a filter of so many taps weighs."""
        return tap_offsets(self.lowest, self.highest, taps)


class Convolution(Variant):
    """One convolution over tokens, channel by channel.

    Args:
        name: a lowercase identifier; it names the emitted kernels.
        weight: `w[c, i - j]`, a declared tensor of shape c,T: T taps a channel.
        mask: bounds on i - j: `causal`, `window(left, right)`, comparisons; `full` centres the
            taps, an odd number of them, on i = j. Tap 0 is the lowest offset that the mask shows.
        skip: `D[c]`, what the channel's own token is multiplied by and added.
        pregate, postgate: inputs of shape b,t,c that multiply v and the result.
        transforms: what becomes of the taps before they are used, in order: `smooth(width)`,
            `squash(lambda)`, `dropout(p)`.
        outer, inner: the factors of v's transform, `F1[z, k1, n1]` and `F2[z, k2, n2]`, params
            whose axis z is the real and the imaginary part; `init_factors` gives the DFT's.
        params, inputs: declared tensors by name; those of Python expressions are found.
        about, paper: as a `Variant` has them.

    Raises:
        DeclarationError: a field that is refused; its text says where and why.
    """

    __slots__ = ("filter",)

    filter: Filter

    def __init__(
        self,
        name: str,
        *,
        weight: str | Expr,
        mask: str | Expr = "full",
        skip: str | Expr | None = None,
        pregate: str | Expr | None = None,
        postgate: str | Expr | None = None,
        transforms: Iterable[str] = (),
        outer: str | Expr | None = None,
        inner: str | Expr | None = None,
        params: Mapping[str, object] | Iterable[object] = (),
        inputs: Mapping[str, object] | Iterable[object] = (),
        about: str = "",
        paper: object = None,
    ) -> None:
        from attnc.dsl.convolution_check import checked_convolution
        from attnc.dsl.fields import Fields

        fields = Fields(
            name=name, feature_map=None, scale=None, mask=mask, weight=weight, skip=skip,
            pregate=pregate, postgate=postgate, transforms=transforms, params=params, inputs=inputs,
            about=about, paper=paper, outer=outer, inner=inner,
        )  # fmt: skip
        self._take(checked_convolution(fields))

    @property
    def family(self) -> str:
        """`conv`: the weight is a function of i - j and the channel."""
        return "conv"

    @property
    def untransformed(self) -> Convolution:
        """The convolution by taps that are used as they come."""
        parts: dict[str, object] = {
            slot: getattr(self, slot) for slot in (*Variant.__slots__, *Convolution.__slots__)
        }
        parts["filter"] = replace(self.filter, transforms=())
        found = Convolution.__new__(Convolution)
        found._take(parts)
        return found

    @property
    def used(self) -> frozenset[str]:
        """Names of the declared tensors that some field reads."""
        return frozenset(ref.name for _, ref in self.filter.refs)

    @property
    def digest(self) -> str:
        """sha256 of the meaning alone: not the name, the key order or the white space."""
        declared = {tensor.name: tensor for tensor in (*self.params, *self.inputs)}
        facts: dict[str, object] = {
            field: [ref.name, list(ref.index), declared[ref.name].grad, declared[ref.name].kind]
            for field, ref in self.filter.refs
        }
        facts["mask"] = str(self.mask_form)
        if self.filter.transforms:
            facts["transforms"] = [str(transform) for transform in self.filter.transforms]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def summary(self) -> str:
        """The declaration on one line."""
        parts = [f"{field} {to_text(ref)}" for field, ref in self.filter.refs]
        parts.insert(1, f"mask {to_text(self.mask)}")
        parts.extend(f"taps {transform}" for transform in self.filter.transforms)
        return ", ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What is legal and probably not meant."""
        return tuple(
            f"{self.name}: {tensor.kind} {tensor.name!r} is declared and not used"
            for tensor in (*self.params, *self.inputs)
            if tensor.name not in self.used
        )
