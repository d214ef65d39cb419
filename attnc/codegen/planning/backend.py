"""Which backend makes the kernels of a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.codegen.algebra import Algebra, analyse
from attnc.codegen.gluon.planner import refusal, tile_columns
from attnc.codegen.gluon.worth import against, why_taken
from attnc.codegen.plan import BACKENDS, Plan, Request
from attnc.errors import PlanError


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend by name, why it is taken, and whether it was `asked` for."""

    name: str
    reason: str
    asked: bool = False


ASKED = "asked for"


def choose_backend(request: Request, algebra: Algebra) -> Backend:
    """The backend of a request, and why.

    The rule: what is asked for; else `gluon` where it can be had and was measured to be faster.

    Raises:
        PlanError: the backend asked for is unknown, or cannot take the request.
    """
    if request.backend not in {None, *BACKENDS}:
        known = " and ".join(BACKENDS)
        raise PlanError(f"unknown backend {request.backend!r}", notes=(f"there are {known}",))
    if request.backend == "triton":
        return Backend("triton", ASKED, asked=True)
    refused = refusal(request, algebra)
    columns = tile_columns(max(request.dims))
    if request.backend is None:
        why = refused or against(request, algebra, columns)
        return portable(why) if why else Backend("gluon", why_taken(request, columns))
    if refused:
        raise PlanError(
            f"the gluon backend cannot take the {request.phase} of {request.variant.name!r}",
            notes=(refused,),
            hints=("leave the backend out: triton takes all that can be declared",),
        )
    return Backend("gluon", ASKED, asked=True)


def has_choice(plan: Plan) -> bool:
    """Whether either backend could have made a plan, so that a command has to name one."""
    if plan.algebra.family == "conv":
        return False
    asked = Request(plan.variant, plan.device, plan.dims, plan.dtype, phase=plan.phase)
    return not refusal(asked, plan.algebra)


def portable(why: str) -> Backend:
    """The triton backend, and why it is not gluon."""
    return Backend("triton", f"not gluon: {why}")


def of_phase(request: Request, phase: str, wanted: tuple[str, ...] | None = None) -> Request:
    """The same request for a phase; the planner chooses where gluon is asked for and cannot be."""
    asked = replace(request, phase=phase, wanted=wanted)
    if asked.backend == "gluon" and refusal(asked, analyse(request.variant)):
        return replace(asked, backend=None)
    return asked
