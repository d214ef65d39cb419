"""Which backend makes the kernels of a request."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.gluon.planner import refusal
from attnc.codegen.plan import BACKENDS, Request
from attnc.errors import PlanError

_UNMEASURED = "no card has measured it, so it has to be asked for"


def choose_backend(request: Request, algebra: Algebra) -> tuple[str, str]:
    """The backend of a request, and why.

    The rule: `triton`, until a card has measured `gluon`; what is asked for otherwise.

    Raises:
        PlanError: the backend asked for is unknown, or cannot take the request.
    """
    if request.backend not in {None, *BACKENDS}:
        known = " and ".join(BACKENDS)
        raise PlanError(f"unknown backend {request.backend!r}", notes=(f"there are {known}",))
    if request.backend == "triton":
        return "triton", "asked for"
    against = refusal(request, algebra)
    if request.backend is None:
        return "triton", f"not gluon: {against or _UNMEASURED}"
    if against:
        raise PlanError(
            f"the gluon backend cannot take the {request.phase} of {request.variant.name!r}",
            notes=(against,),
            hints=("leave the backend out: triton takes all that can be declared",),
        )
    return "gluon", "asked for"


def of_phase(request: Request, phase: str, wanted: tuple[str, ...] | None = None) -> Request:
    """The same request for a phase; a backend that is asked for makes the forward alone."""
    backend = request.backend if phase == "forward" else None
    return replace(request, phase=phase, wanted=wanted, backend=backend)
