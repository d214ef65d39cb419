"""FlashAttention's criterion: a kernel may err twice as far as eager torch in the same dtype.

    max|out - ref| <= 2 * max|pt - ref| + 2 * max|(ref + 0.3 - 0.3) - ref|

with the last evaluated in the working dtype. fp32 has a relative norm of its own. Whatever the
bound, a NaN or an infinity where the reference is finite fails, and so does another shape.
Source: flash-attn, tests/test_flash_attn.py, the bounds of `test_flash_attn_output`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FORWARD_NORM, GRADIENT_NORM = 1e-5, 1e-4
# an lse is accumulated in fp32 from exact products, whatever the dtype of q and k
LSE_ERROR = 1e-5
# a gradient this small beside eager torch's error of it is 0, up to fp64's rounding
_VANISHED = 1e-5
_NOTHING = 1e-5


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an output passes, by how much, and which element is the worst.

    `error` and `bound` are absolute in 16-bit dtypes, relative norms in fp32. `zeros_fail` says
    that an output of zeros would fail: where it is false, the check shows nothing.
    """

    passed: bool
    error: float
    bound: float
    worst_index: tuple[int, ...]
    out_value: float
    ref_value: float
    zeros_fail: bool
    trivial: bool
    reason: str

    @property
    def sound(self) -> bool:
        """Passed, by a check that zeros would fail or on a reference that is zero everywhere."""
        return self.passed and (self.zeros_fail or self.trivial)

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.worst_index))}]"
        values = f"worst element {place}: {self.out_value:.6g}, reference {self.ref_value:.6g}"
        mark = "passed" if self.passed else "failed"
        return f"{mark}: {self.reason}; {values}"


def check(
    out: Tensor,
    ref: Tensor,
    pt: Tensor,
    *,
    gradient: bool = False,
    allowed: Tensor | None = None,
    bound: float = 0.0,
) -> Verdict:
    """Hold an output against the fp64 reference, by what `pt` gets in the dtype of `out`.

    `out` in fp32 or fp64 is held to a relative norm instead, and `pt` is not read. What is
    `allowed` of an element beyond the bound is what `conditioning.allowance` says. A larger `bound`
    is one that other draws gave.
    """
    out = _nearer(out, ref, allowed)
    wrong = _wrong_shape(out, ref)
    if wrong is not None:
        return wrong
    if out.dtype in {torch.float32, torch.float64}:
        limit = GRADIENT_NORM if gradient else FORWARD_NORM
        return _by_norm(out, ref, limit)
    return _by_maximum(out, ref, max(bound, bound_of(ref, pt, out.dtype)))


def check_state(out: Tensor, ref: Tensor, pt: Tensor, dtype: torch.dtype) -> Verdict:
    """Hold an fp32 state against the reference; its features were formed in `dtype`."""
    wrong = _wrong_shape(out, ref)
    if wrong is not None:
        return wrong
    if dtype in {torch.float32, torch.float64}:
        return _by_norm(out, ref, FORWARD_NORM)
    return _by_maximum(out, ref, bound_of(ref, pt, dtype))


def check_gradient(
    out: Tensor, ref: Tensor, eager: float, dtype: torch.dtype, *, reduced: bool
) -> Verdict:
    """Hold a gradient of a call in `dtype` against the reference's; `eager` is eager torch's error.

    A `reduced` one, of a param, an input or a state, may err 3 times as far as eager torch and not
    twice: it sums over all pairs of a head in another order, where rounding adds up. In fp32 a sum
    whose terms cancel has no relative precision; it is then held to what eager fp32 gets. Where all
    terms cancel (a normalised row of one key) rounding is all there is, a few numbers of one size,
    and the bound is 32 times eager torch's, or what fp32 leaves of numbers near 1 where eager has
    none; a wrong derivative is off by millions.
    """
    wrong = _wrong_shape(out, ref)
    if wrong is not None:
        return wrong
    if dtype == torch.float64:
        return _by_norm(out, ref, GRADIENT_NORM)
    if float(ref.abs().max()) <= _VANISHED * eager:
        return replace(_by_maximum(out, ref, max(32 * eager, _NOTHING)), trivial=True)
    # the rounding term is made for values near 1: of smaller gradients zeros would pass it
    size = min(1.0, float(ref.abs().max()))
    bound = (3 if reduced else 2) * eager + 2 * size * _rounding(ref / size, dtype)
    if dtype == torch.float32:
        verdict = _by_norm(out, ref, GRADIENT_NORM)
        return verdict if verdict.passed else _by_maximum(out, ref, bound)
    return _by_maximum(out, ref, bound)


def check_agreement(
    out: Tensor,
    other: Tensor,
    ref: Tensor,
    pt: Tensor,
    allowed: Tensor | None = None,
    *,
    bound: float = 0.0,
) -> Verdict:
    """Hold two forms against each other, by the bound that each of them has from the reference."""
    out = _nearer(out, other, allowed)
    wrong = _wrong_shape(out, other)
    if wrong is not None:
        return wrong
    wide = other.to(ref.dtype)
    if out.dtype in {torch.float32, torch.float64}:
        verdict = _by_norm(out, wide, FORWARD_NORM)
    else:
        verdict = _by_maximum(out, wide, max(bound, bound_of(ref, pt, out.dtype)))
    # two outputs of zeros agree, and show nothing where the reference is not zero
    return replace(verdict, trivial=not bool((ref != 0).any()))


def check_lse(out: Tensor, ref: Tensor, pt: Tensor | None = None) -> Verdict:
    """Hold an fp32 lse against the reference, to 1e-5 of its largest value or of 1.

    `pt` is given where the hardware's tanh, or rounded features, make scores no better than the
    working dtype holds them: then, as for an output, up to twice eager's error.
    """
    wrong = _wrong_shape(out, ref)
    if wrong is not None:
        return wrong
    finite = ref[ref.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    eager = 0.0 if pt is None else float(_difference(pt, ref).max())
    return _by_maximum(out, ref, max(LSE_ERROR * max(1.0, largest), 2 * eager))


def bound_of(ref: Tensor, pt: Tensor, dtype: torch.dtype) -> float:
    """The right side of the criterion, in the working dtype."""
    finite = ref.isfinite() & pt.isfinite()
    if not bool(finite.any()):
        return 0.0
    eager = (pt.to(ref.dtype) - ref)[finite].abs().max()
    return 2 * float(eager) + 2 * _rounding(ref[finite], dtype)


def _rounding(ref: Tensor, dtype: torch.dtype) -> float:
    """What adding and subtracting 0.3 in the working dtype changes at most."""
    held = ref.to(dtype)
    return float((held + 0.3 - 0.3 - held).abs().max())


def _by_maximum(out: Tensor, ref: Tensor, bound: float) -> Verdict:
    difference = _difference(out, ref)
    error = float(difference.max()) if difference.numel() else 0.0
    zeros = float(_difference(torch.zeros_like(ref), ref).max()) if ref.numel() else 0.0
    passed = error <= bound and not math.isnan(bound)
    reason = f"max|out - ref| = {error:.4g}, bound {bound:.4g}"
    return _verdict(out, ref, difference, passed, error, bound, zeros > bound, reason)


def _by_norm(out: Tensor, ref: Tensor, limit: float) -> Verdict:
    difference = _difference(out, ref)
    finite = ref.isfinite()
    size = float(ref[finite].norm())
    distance = float(difference.norm())
    error = distance / size if size > 0 else (0.0 if distance == 0 else math.inf)
    passed = error <= limit
    reason = f"||out - ref|| / ||ref|| = {error:.4g}, bound {limit:.4g}"
    zeros_fail = size > 0 or not bool(finite.all())
    return _verdict(out, ref, difference, passed, error, limit, zeros_fail, reason)


def _nearer(out: Tensor, ref: Tensor, allowed: Tensor | None) -> Tensor:
    """`out` moved towards `ref` by what is allowed, and no further."""
    if allowed is None or out.shape != ref.shape:
        return out
    wide, near = out.to(allowed.dtype), ref.to(allowed.dtype)
    moved = wide + torch.minimum(allowed, (near - wide).abs()) * (near - wide).sign()
    # in the dtype of `out` even where that rounds: the bound has room for it
    return moved.to(out.dtype)


def _difference(out: Tensor, ref: Tensor) -> Tensor:
    """|out - ref|, infinite where either is not finite and they are not equal."""
    wide = out.to(ref.dtype)
    difference = (wide - ref).abs()
    same = wide == ref
    odd = ~(wide.isfinite() & ref.isfinite())
    difference = torch.where(odd, torch.full_like(difference, math.inf), difference)
    return torch.where(same, torch.zeros_like(difference), difference)


def _verdict(
    out: Tensor,
    ref: Tensor,
    difference: Tensor,
    passed: bool,
    error: float,
    bound: float,
    zeros_fail: bool,
    reason: str,
) -> Verdict:
    trivial = not bool((ref != 0).any())
    if not difference.numel():
        return Verdict(passed, error, bound, (), 0.0, 0.0, zeros_fail, trivial, reason)
    flat = int(difference.argmax())
    index = tuple(int(n) for n in torch.unravel_index(torch.tensor(flat), ref.shape))
    return Verdict(
        passed=passed,
        error=error,
        bound=bound,
        worst_index=index,
        out_value=float(out[index]),
        ref_value=float(ref[index]),
        zeros_fail=zeros_fail,
        trivial=trivial,
        reason=reason,
    )


def _wrong_shape(out: Tensor, ref: Tensor) -> Verdict | None:
    if out.shape == ref.shape:
        return None
    reason = f"the output is {list(out.shape)}, the reference {list(ref.shape)}"
    return Verdict(False, math.inf, 0.0, (), math.nan, math.nan, True, False, reason)
