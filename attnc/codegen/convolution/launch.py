"""The text of a convolution's launchers: what they allocate, and the arguments of every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attnc.codegen.convolution.algebra import BUTTERFLY, FFT, STEP_FORM, THREE_PASS, TOEPLITZ
from attnc.codegen.convolution.inner_passes import INNER_PASSES
from attnc.codegen.convolution.outer_passes import OUTER_PASSES
from attnc.codegen.plan import TORCH_TYPES, PassPlan, Plan
from attnc.codegen.text.constants import constant
from attnc.dsl.convolution import Convolution, Filter

_LAUNCHERS = {
    (TOEPLITZ, False): "launch_convolution.jinja",
    (TOEPLITZ, True): "launch_dconvolution.jinja",
    (FFT, False): "launch_fft.jinja",
    (FFT, True): "launch_dfft.jinja",
    (THREE_PASS, False): "launch_three.jinja",
    (THREE_PASS, True): "launch_dthree.jinja",
    (BUTTERFLY, False): "launch_butterfly.jinja",
    (BUTTERFLY, True): "launch_dbutterfly.jinja",
    (STEP_FORM, False): "launch_filter_step.jinja",
}


@dataclass(frozen=True, slots=True)
class ConvolutionLaunch:
    """What the launch templates of a convolution print; `by_token` are tensors [B, T, C].

    `size` tokens are a block; `n1`, `n2` and `half` are the factors of a transform; of three passes
    `outer_points` are those of the outer stage, over `columns`. `whole` sequences are one block.
    """

    launcher: str
    parameters: tuple[str, ...]
    summary: str
    others: str
    returns: str
    by_token: tuple[str, ...]
    weight: str
    centred: bool
    low: int
    bound: int | None
    calls: dict[str, str]
    blocks: dict[str, str]
    size: int
    n1: int
    n2: int
    half: int
    outer_points: int
    columns: int
    column_tiles: int
    whole: bool
    tiles: dict[str, int]
    programs: int
    acc: str
    pregate: str
    postgate: str
    taps_range: str
    weight_gradient: bool
    skip_gradient: str
    outer: str
    inner: str
    outer_gradient: bool
    inner_gradient: bool
    results: tuple[str, ...]


def convolution_launch(plan: Plan, render_call: Callable[..., str]) -> ConvolutionLaunch:
    """All of it, for the phase of the plan."""
    assert isinstance(plan.variant, Convolution)
    found = plan.variant.filter
    backward = plan.derivation is not None
    partials = () if plan.derivation is None else plan.derivation.partials
    wanted = frozenset(partial.declared.name for partial in partials)
    names = tuple(f"u_{t.name}" for t in (*plan.variant.params, *plan.variant.inputs)
                  if t.name in plan.variant.used)  # fmt: skip
    gates = tuple(f"u_{ref.name}" for ref in (found.pregate, found.postgate) if ref is not None)
    tiles = {key: size for step in plan.passes for key, size in step.tile.items()}
    weighed = found.weight.name in wanted
    skipped = found.skip.name if found.skip is not None and found.skip.name in wanted else ""
    verb = "Gradients of a" if backward else "A"
    low, bound = found.lowest, found.highest
    return ConvolutionLaunch(
        launcher=_LAUNCHERS[plan.form, backward],
        parameters=(
            "v",
            *names,
            *(("do",) if backward else ()),
            *(("ring", "lengths") if plan.decode else ()),
        ),
        summary=f"{verb} convolution by the {plan.form} form.",
        others=_others(found),
        returns=", ".join(["dv", *(f"d{name[2:]}" for name in names if name[2:] in wanted)]),
        by_token=("v", *gates, *(("do",) if backward else ())),
        weight=f"u_{found.weight.name}",
        centred=low is None,
        low=low or 0,
        bound=None if bound is None or low is None else bound - low + 1,
        calls={step.kernel.name: _call(plan, step, render_call) for step in plan.passes},
        blocks=_blocks(plan, tiles),
        size=block_size(tiles),
        n1=tiles.get("N1", 0),
        n2=tiles.get("N2", 0),
        half=tiles.get("NH", 0),
        outer_points=tiles.get("NO", 0),
        columns=tiles.get("M", 0),
        column_tiles=tiles.get("M", 1) // tiles.get("BM", 1),
        whole=plan.form in {THREE_PASS, BUTTERFLY},
        tiles=tiles,
        programs=plan.programs,
        acc=TORCH_TYPES[plan.acc],
        pregate=_wanted(found.pregate, wanted),
        postgate=_wanted(found.postgate, wanted),
        taps_range=_taps_range(weighed=weighed, skipped=bool(skipped)),
        weight_gradient=weighed,
        skip_gradient=f"u_{skipped}" if skipped else "",
        outer=_named(found.outer),
        inner=_named(found.inner),
        outer_gradient=bool(_wanted(found.outer, wanted)),
        inner_gradient=bool(_wanted(found.inner, wanted)),
        results=_results(found, names, wanted),
    )


def _others(found: Filter) -> str:
    skip = ", a skip [C]" if found.skip is not None else ""
    gates = sum(ref is not None for ref in (found.pregate, found.postgate))
    factors = ", factors [2, N1, N1 / 2] and [2, N2, N2]" if found.learned else ""
    return skip + ("", ", a gate [B, T, C]", ", gates [B, T, C]")[gates] + factors


def _named(ref: object) -> str:
    name = getattr(ref, "name", "")
    return f"u_{name}" if name else ""


def _wanted(ref: object, wanted: frozenset[str]) -> str:
    name = getattr(ref, "name", "")
    return f"u_{name}" if name in wanted else ""


def _blocks(plan: Plan, tiles: dict[str, int]) -> dict[str, str]:
    """The statements for the first and the last offset between blocks that the filter joins."""
    size = block_size(tiles)
    forward = f"LOW // {size}", f"(LOW + TAPS + {size - 2}) // {size}"
    mirrored = f"(1 - LOW - TAPS) // {size}", f"({size - 1} - LOW) // {size}"
    found = {
        side: f"FIRST, LAST = max({first}, 1 - NT), min({last}, NT - 1)"
        for side, (first, last) in (("forward", forward), ("mirrored", mirrored))
    }
    if plan.passes[0].kernel.loops:
        # a filter that no two tokens are far enough apart for has one piece all the same
        found["pieces"] = f"{found['forward']}\n    LAST = max(FIRST, LAST)"
    else:
        found["pieces"] = "# every sequence is one block\n    FIRST = LAST = 0"
    return found


def block_size(tiles: dict[str, int]) -> int:
    """Tokens of a block: the rows of a Toeplitz tile, or half of the points of a transform."""
    if "NO" in tiles:
        return tiles["NO"] * tiles["N1"] * tiles["N2"] // 2
    return tiles["NH"] * tiles["N2"] if "NH" in tiles else tiles.get("BT", 1)


def most_tokens(plan: Plan) -> int | None:
    """The longest sequence that the module of a plan takes; None where it takes any."""
    if plan.form == TOEPLITZ or (plan.form == FFT and plan.passes[0].kernel.loops):
        return None
    return block_size({key: size for step in plan.passes for key, size in step.tile.items()})


def _taps_range(*, weighed: bool, skipped: bool) -> str:
    """The offsets whose sums are wanted: the filter's, and 0 for the skip's gradient."""
    if weighed and skipped:
        return "min(LOW, 0), max(LOW + TAPS - 1, 0)"
    return "LOW, LOW + TAPS - 1" if weighed else "0, 0"


def _results(found: Filter, names: tuple[str, ...], wanted: frozenset[str]) -> tuple[str, ...]:
    texts = {found.weight.name: f"d{found.weight.name}"}
    for field, text in (("pregate", "dpre"), ("postgate", "dpost")):
        ref = getattr(found, field)
        if ref is not None:
            texts[ref.name] = f"{text}.transpose(1, 2)"
    if found.skip is not None:
        texts[found.skip.name] = f"dskip.to(u_{found.skip.name}.dtype)"
    texts[found.weight.name] = f"du_{found.weight.name}"
    for factor, text in ((found.outer, "douter"), (found.inner, "dinner")):
        if factor is not None:
            texts[factor.name] = f"{text}.to(u_{factor.name}.dtype)"
    named = [texts[name[2:]] for name in names if name[2:] in wanted]
    return ("dv.transpose(1, 2)", *named)


def _call(plan: Plan, step: PassPlan, render_call: Callable[..., str]) -> str:
    kernel, tile = step.kernel, step.tile
    rows = f"triton.cdiv(B * NT, {tile.get('BR', 1)})"
    grids = {
        "dtaps": ["C * NM", "S"],
        "filter_step": [f"C * triton.cdiv(B, {tile.get('BB', 1)})"],
        "dspectrum": ["C * (LAST - FIRST + 1)", "S"],
        "butterfly_dspectrum": ["C * S"],
        "inner_sums": [f"C * {tile.get('NO')}", "parts"],
        **{name: [f"{tile['M'] // tile['BM']} * S"] for name in OUTER_PASSES if "M" in tile},
        **{name: [f"C * {tile.get('NO')} * NP"] for name in INNER_PASSES[:3]},
        "douter": ["S"],
        "dinner": ["S"],
        **{name: ["C * B"] for name in ("butterfly", "dbutterfly", "butterfly_dgate")},
    }
    each = "triton.cdiv(B * NT, 2) * C" if "NH" in tile else f"{rows} * C"
    grid = grids.get(kernel.name, [each])
    strides = []
    for tensor in kernel.tensors:
        count = len(tensor.axes)
        if tensor.axes[:1] == ("b",):
            strides.append(f"*{tensor.name}.stride()[:2]")
        elif count:
            strides.append(f"*{tensor.name}.stride()")
    return render_call(
        symbol=f"{plan.variant.name}_{kernel.name}",
        grid=grid,
        tensors=[tensor.name for tensor in kernel.tensors],
        numbers=[*strides, *kernel.scalars],
        constants=[f"{name}={constant(plan, step, name)}" for name in kernel.constants],
        options=step.options,
    )
