"""Which calls need a backward, what may ask for one, and what it takes. Copied into wheels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from attnc.errors import InputError
from attnc.ops.near import near

if TYPE_CHECKING:
    from attnc.dsl.variant import Variant

# types of tensors that have no dispatch of their own
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def forward_mode() -> bool:
    """Whether tangents may travel with tensors."""
    return forward_ad._current_level >= 0


def needs_gradient(*tensors: torch.Tensor | float | None) -> bool:
    """Whether autograd will want a backward of these inputs, or refuse their tangents."""
    if forward_mode() and any(
        isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        for x in tensors
    ):
        return True
    if not torch.is_grad_enabled():
        return False
    return any(getattr(tensor, "requires_grad", False) for tensor in tensors)


def check_gradients(variant: Variant, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse a tensor that requires grad and was not declared to have one.

    Raises:
        InputError: with the declaration that it needs.
    """
    for declared in (*variant.params, *variant.inputs):
        if given[declared.name].requires_grad and not declared.grad:
            shape = ", ".join(f'"{letter}"' for letter in declared.shape)
            raise InputError(
                f"{declared.kind} {declared.name!r} of {variant.name!r} requires grad, and is "
                "declared without",
                notes=("a gradient that nobody asked for costs time at every step",),
                hints=(
                    f"declare {declared.kind}s.{declared.name} = "
                    f"{{ shape = [{shape}], grad = true }}, or detach the tensor",
                ),
            )


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under torch.autocast, fp32 tensors in autocast's dtype, as its matrix products take them."""
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        return tensors  # the check of the inputs says which one is not
    kind = tensors[0].device.type
    if kind not in {"cpu", "cuda"} or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype == torch.float32 else t for t in tensors)


def apart(*tensors: Any) -> list[Any]:
    """Tensors or None, each as an object of its own: keys that are the values too, say.

    Dynamo traces no autograd.Function that is given one tensor twice.
    """
    found: list[Any] = []
    for tensor in tensors:
        twice = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if twice else tensor)
    return found


def gradient_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    initial_state: torch.Tensor | None,
) -> list[torch.Tensor]:
    """What an emitted `backward` takes, in order; `gradients` are those of o and what else came."""
    # channels have to be adjacent: `sum().backward()` hands over one number, expanded
    do, *others = (x if x.stride(-1) == 1 else x.contiguous() for x in gradients)
    state = [] if initial_state is None else [initial_state]
    q, k, v, do = map(near, (q, k, v, do.to(q.dtype)))
    return [q, k, v, *tensors, *kept, do, *state, *(x.contiguous() for x in others)]


def gradient_results(
    results: Sequence[torch.Tensor],
    names: Sequence[str],
    wanted: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    stateful: bool,
) -> list[torch.Tensor]:
    """dq, dk, dv, the declared tensors in `wanted`, and the initial state's.

    `names` are the declared tensors whose gradients an emitted `backward` returns after dv; one
    that nothing depends on has none, and gets zeros.
    """
    found = dict(zip(names, results[3:], strict=False))
    declared = [
        found[name] if name in found else torch.zeros_like(tensors[name]) for name in wanted
    ]
    return [*results[:3], *declared, *([results[-1]] if stateful else [])]


class _First(torch.autograd.Function):
    """Gradients as they are; their own gradients are refused, where autograd would leave them out.

    `sources` are what the gradients were made of, so that autograd knows what they depend on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *gradients_and_sources: torch.Tensor) -> Any:
        return tuple(x.view_as(x) for x in gradients_and_sources[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise InputError(
            f"{ctx.name!r} has first derivatives, no second ones",
            notes=("a gradient taken with create_graph=True was differentiated again",),
            hints=(
                "detach the gradient, or leave create_graph out",
                "op.reference(...) is eager, and has derivatives of any order",
            ),
        )


def once(
    key: str,
    gradients: Sequence[torch.Tensor | None],
    sources: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """Gradients that no one differentiates again unawares; `key` starts with the variant's name.

    Autograd records what a backward does where a graph is asked for, and kernels leave no record:
    a gradient penalty would silently have no part in a gradient.
    """
    # a traced backward is refused a second derivative by PyTorch's compiler
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return list(gradients)
    own = [x for x in sources if x is not None and x.requires_grad]
    found = [x for x in gradients if x is not None]
    if not own or not found:
        return list(gradients)
    kept = iter(_First.apply(key.split("-")[0], len(found), *found, *own))  # type: ignore[no-untyped-call]
    return [None if x is None else next(kept) for x in gradients]
