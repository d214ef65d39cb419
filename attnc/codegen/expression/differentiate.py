"""Derivatives as torch takes them: what sympy's own have wrong at kinks, ties and powers of 0."""

from __future__ import annotations

import sympy

from attnc.codegen.expression.symbolic import relu


class _Absolute(sympy.Function):  # type: ignore[misc]
    """|x| whose derivative is sign(x); sympy's own asks first whether x is known to be real."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.sign(self.args[0])


class _Greatest(sympy.Function):  # type: ignore[misc]
    """The maximum; those that tie share its derivative alike, as torch.amax has it.

    `max(u[i], u[j])` ties at i = j, and parameters that start at 0 tie everywhere: there the
    derivatives have to add up to 1.
    """

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return _share(self.args, argindex, 1)


class _Least(sympy.Function):  # type: ignore[misc]
    """The minimum, likewise."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return _share(self.args, argindex, -1)


class _Power(sympy.Function):  # type: ignore[misc]
    """x**y of an exponent that is no number: 0**y has derivatives, where sympy's are 0 * inf."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        base, exponent = self.args
        if argindex == 1:
            slope, zero = exponent * _Power(base, exponent - 1), sympy.Eq(exponent, 0)
        elif base.is_number and base < 0:
            return sympy.nan
        else:
            slope, zero = self * sympy.log(base), sympy.Eq(base, 0)
        return sympy.Piecewise((0, zero), (slope, True))


def differentiate(expr: sympy.Expr, by: sympy.Symbol) -> sympy.Expr:
    """d expr / d by; where the derivative jumps, the side that torch takes at a kink."""
    own = ((sympy.Abs, _Absolute), (sympy.Max, _Greatest), (sympy.Min, _Least))
    for theirs, ours in own:
        expr = expr.replace(theirs, ours)
    expr = expr.replace(_of_any_exponent, lambda power: _Power(*power.args))
    slope = sympy.diff(expr, by).replace(_Power, sympy.Pow)
    for theirs, ours in own:
        slope = slope.replace(ours, theirs)
    return slope.replace(sympy.Mul, _cut)


def _cut(*factors: sympy.Expr) -> sympy.Expr:
    """A product of which a relu leaves nothing, not 0 * inf, where it is 0: of sqrt(relu(s))."""
    product = sympy.Mul(*factors)
    for step in factors:
        if isinstance(step, sympy.Heaviside):
            passed = step.args[0]
            rest = sympy.Mul(*(factor for factor in factors if factor != step))
            if rest.xreplace({relu(passed): sympy.S.Zero}).has(sympy.zoo, sympy.nan, sympy.oo):
                return sympy.Piecewise((rest, passed > 0), (0, True))
    return product


def _of_any_exponent(expr: sympy.Basic) -> bool:
    """Whether an expression is a power whose base may be 0 and whose exponent is no number."""
    return (
        isinstance(expr, sympy.Pow)
        and not expr.exp.is_number
        and not (expr.base.is_number and expr.base > 0)
    )


def _share(args: tuple[sympy.Expr, ...], argindex: int, sign: int) -> sympy.Expr:
    """What one argument has of the derivative: 1 where it is chosen alone, 1/n where n tie."""
    own, others = args[argindex - 1], [arg for n, arg in enumerate(args, 1) if n != argindex]
    if len(others) == 1:
        return (1 + sympy.sign(sign * (own - others[0]))) / 2
    chosen = [
        sympy.prod(1 - sympy.Heaviside(sign * (other - arg), 0) for other in args if other != arg)
        for arg in args
    ]
    # none is chosen where rounding has every one of a near tie below another
    return chosen[argindex - 1] / sympy.Max(1, sum(chosen))
