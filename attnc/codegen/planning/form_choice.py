"""Which form a request takes: the one asked for, else the family's; of monomials by products."""

from __future__ import annotations

from math import ceil

from attnc.codegen.algebra import Algebra
from attnc.codegen.features import Features
from attnc.codegen.plan import Request
from attnc.codegen.planning.candidate import is_wide, state_too_large
from attnc.codegen.planning.chunk_planner import chunk_features, gradient_features
from attnc.codegen.planning.decode_planner import decode_form
from attnc.codegen.planning.ranked_passes import whole_heads
from attnc.codegen.planning.visibility import border_keys, near_keys
from attnc.codegen.planning.work import pair_flops
from attnc.errors import PlanError

# the chunk that products are counted for
_CHUNK = 64
# no card has timed the chunked form of a sum: it is taken where it makes half the products or less
_WORTH = 2.0
# an H100 made the products of all pairs at 287 TFLOP/s where it made those of a state of monomials
# at 91 (benchmarks/NOTES.md): they are formed, and masked columns multiplied
_PAIRS_RATE = 2.0


def choose_form(request: Request, algebra: Algebra) -> tuple[str, str]:
    """The form of a request at its workload, and why it is that one.

    Raises:
        PlanError: the form asked for is not legal, or there is no decode or no state.
    """
    name = request.variant.name
    legal = ", ".join(verdict.form for verdict in algebra.forms if verdict.legal)
    if request.decode:
        return decode_form(request, algebra)
    asked = request.form is None or algebra.legal(request.form).legal
    if request.stateful and asked and not algebra.keeps_state.legal:
        raise PlanError(f"{name!r} keeps no state", notes=(algebra.keeps_state.reason,))
    if request.form is not None:
        verdict = algebra.legal(request.form)
        if not verdict.legal:
            raise PlanError(
                f"{name!r} has no {request.form} form",
                notes=(verdict.reason,),
                hints=(f"its legal forms are: {legal}",),
            )
        return request.form, "asked for"
    chunked = algebra.legal("chunked")
    if algebra.terms:
        return _sum_form(request, algebra)
    if algebra.legal("online").legal:
        return "online", algebra.legal("online").reason
    if chunked.legal:
        return _state_form(request, algebra)
    return "parallel", chunked.reason


def _state_form(request: Request, algebra: Algebra) -> tuple[str, str]:
    """The form of a weight that folds into a state, at a request's workload, and why."""
    chunked = "chunked", algebra.legal("chunked").reason
    work, mask = request.workload, request.variant.mask_form
    # what no card has timed by pairs, or timed as slower, stays as it is
    if algebra.direct or algebra.global_sum or algebra.decay is not None:
        return chunked
    # a state goes on, sequences agree with calls of their own, a package is of one form
    if request.stateful or mask.packed or work.tq != work.tk or request.launcher == "packaged":
        return chunked
    features = _features(request, algebra)
    if state_too_large(request, features):
        return chunked
    columns = _pair_columns(request)
    pairs = pair_flops(request) * columns / sum(request.dims)
    padded = ceil(work.tq / _CHUNK) * _CHUNK
    token = _state_flops(request, features) + 2.0 * _CHUNK * columns
    state = work.batch * work.hq * padded * token
    if pairs < _PAIRS_RATE * state:
        said = f"{pairs / 1e9:,.1f} GFLOP, a state of monomials {state / 1e9:,.1f}"
        return "parallel", f"all pairs take {said}, and a GFLOP of that takes longer"
    return chunked


def _sum_form(request: Request, algebra: Algebra) -> tuple[str, str]:
    """The form of a sum of terms at a request's workload, and why it is that one."""
    online, chunked = algebra.legal("online"), algebra.legal("chunked")
    work, variant = request.workload, request.variant
    if not chunked.legal or work.tq != work.tk:
        return "online", online.reason
    if variant.mask_form.packed:
        return "online", "where sequences start is data, and so is what their pairs take"
    if request.launcher == "packaged":
        return "online", "a package's modules take queries and keys of any two lengths"
    too_large = state_too_large(request, _features(request, algebra))
    if too_large:
        return "online", f"the state is too large for any tile: {too_large}"
    columns = _pair_columns(request)
    pairs = pair_flops(request) * columns / sum(request.dims)
    state = chunk_flops(request, algebra)
    said = (
        f"all pairs take {pairs / 1e9:,.1f} GFLOP, a state and the other pairs {state / 1e9:,.1f}"
    )
    if pairs < _WORTH * state:
        return "online", f"{said}, and no card has timed the latter"
    return "chunked", f"{said}: {chunked.reason}"


def chunk_flops(request: Request, algebra: Algebra) -> float:
    """Products of the chunked form of a sum, in one segment a head: state, border, other pairs."""
    assert algebra.folded is not None
    work = request.workload
    rows = 16 if is_wide(request) else _CHUNK
    keys = near_keys(request.variant, algebra.folded, work.tk)
    keys += border_keys(algebra.distance, rows)
    padded = ceil(work.tq / rows) * rows
    token = _state_flops(request, _features(request, algebra))
    heads = work.batch * work.hq
    return heads * (padded * token + work.tq * keys * 2.0 * _pair_columns(request))


def _features(request: Request, algebra: Algebra) -> Features:
    backward = request.phase == "backward"
    return (gradient_features if backward else chunk_features)(request, algebra)


def _pair_columns(request: Request) -> int:
    """Columns of a pair's products: scores and values; in a backward those of both its passes."""
    head_dim, value_dim = request.dims
    if request.phase == "backward":
        return 4 * head_dim + 3 * value_dim
    return head_dim + value_dim


def _state_flops(request: Request, features: Features) -> float:
    """Products of one token with a state."""
    head_dim, value_dim = request.dims
    # rows read the state and keys enter it; back, dq, dk and dv are read, keys and rows enter
    products, picks = 2, 2
    if request.phase == "backward":
        # and what comes back to the channels of either goes through each factor
        products, picks = 5, 6
        head_dim, value_dim = whole_heads(request)
    token = products * 2.0 * features.padded_count * value_dim
    if features.direct:
        return token
    # of monomials each factor is picked by a product
    picked = sum(tile.width * tile.order for tile in features.tiles)
    return token + picks * 2.0 * picked * head_dim
