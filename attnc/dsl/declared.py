"""The tensors that a variant declares: read from tables or found in Python expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from attnc.dsl.expr import Expr, Name, Ref, walk
from attnc.dsl.fields import Fields, check_name, lifted
from attnc.dsl.grammar import FUNCTIONS, INDEX_NAMES
from attnc.dsl.limits import limited_text
from attnc.dsl.variant import Declared
from attnc.errors import FieldError

_BLOCKS = re.compile(r"[ij]/[1-9]\d{0,3}\Z")
LETTERS = ("b", "h", "hkv", "i", "j", "t", "k", "c")
# T counts the taps of a filter, read at i - j; z is the real and the imaginary part of a factor, k1
# and k2 what it gives, n1 (the half that is no padding) and n2 what it takes
FILTER_LETTERS = ("b", "t", "c", "T", "z", "k1", "n1", "k2", "n2")


_RESERVED = (
    (INDEX_NAMES - {"x"})
    | frozenset(FUNCTIONS)
    | {"causal", "full", "q", "v", "o", "lse", "states", "gates", "decays", "index", "weight",
       "initial_state", "final_state", "state", "sums", "final_sums", "lengths", "key_cache",
       "value_cache", "block_table", "parts", "part_lse", "return_lse", "return_state", "form",
       "precision", "tl", "torch", "triton", "first", "last", "lo", "hi", "forward", "acc", "io",
       "key_blocks", "row_blocks", "cu_seqlens_q", "cu_seqlens_k", "self", "out_dtype", "training",
       "range", "float", "min", "max", "len", "dict", "tuple"}
)  # fmt: skip


def declared_tensors(fields: Fields) -> tuple[Declared, ...]:
    """Params, then inputs, each by name; one name is declared once."""
    found: dict[str, Declared] = {}
    for kind, value in (("param", fields.params), ("input", fields.inputs)):
        for tensor in _declarations(fields, kind, value):
            if tensor.name in found:
                raise fields.refuse(
                    f"{tensor.kind}s.{tensor.name}",
                    f"{tensor.name!r} is declared twice in {fields.name!r}",
                )
            found[tensor.name] = tensor
    filtered = (fields.weight, fields.skip, fields.pregate, fields.postgate)
    factors = (fields.outer, fields.inner)
    scored = (fields.score, fields.value, fields.log_decay, fields.sink, fields.mask)
    summed = [x for term in fields.terms for x in (term.score, term.factor, term.mask)]
    for value in (*scored, *filtered, *factors, *summed):
        if isinstance(value, Expr):
            limited_text(lifted(value), f"an expression of {fields.name!r}")
            for node in walk(lifted(value)):
                if isinstance(node, Ref | Name) and node.declared is not None:
                    kept = found.setdefault(node.declared.name, node.declared)
                    if kept != node.declared:
                        raise FieldError(
                            f"{kept.name!r} is declared twice in {fields.name!r}, and differently"
                        )
    for tensor in found.values():
        _check_declared(fields, tensor)
        _check_rows(fields, tensor, found)
    return tuple(sorted(found.values(), key=lambda tensor: (tensor.kind != "param", tensor.name)))


def _declarations(fields: Fields, kind: str, value: object) -> Iterable[Declared]:
    if isinstance(value, Mapping):
        for name, facts in value.items():
            yield _from_table(fields, kind, name, facts)
        return
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise fields.refuse(
            f"{kind}s",
            f"{kind}s of {fields.name!r} is no table",
            hints=(f'write {kind}s.NAME = {{ shape = ["h"] }}',),
        )
    for tensor in value:
        inner = getattr(tensor, "declared", tensor)
        if not isinstance(inner, Declared):
            raise FieldError(f"{tensor!r} is no declared tensor of {fields.name!r}")
        yield inner


def _from_table(fields: Fields, kind: str, name: str, facts: object) -> Declared:
    if isinstance(facts, Declared):
        return facts
    label = f"{kind}s.{name}"
    if not isinstance(facts, Mapping):
        raise fields.refuse(
            label,
            f"{label} of {fields.name!r} is no table",
            hints=(f'write {label} = {{ shape = ["h"], grad = true }}',),
        )
    unknown = sorted(set(facts) - {"shape", "grad"})
    if unknown:
        raise fields.refuse(
            label,
            f"{label} has an unknown key {unknown[0]!r}",
            notes=("a declared tensor has shape and grad",),
        )
    shape = facts.get("shape", [])
    if not isinstance(shape, list | tuple) or not all(isinstance(part, str) for part in shape):
        raise fields.refuse(
            label,
            f"the shape of {label} is no list of letters: {shape!r}",
            hints=('write shape = ["h"], a letter an axis',),
        )
    grad = facts.get("grad", False)
    if not isinstance(grad, bool):
        raise fields.refuse(label, f"grad of {label} is {grad!r}, not true or false")
    return Declared(name, tuple(shape), grad, kind)


def _check_declared(fields: Fields, tensor: Declared) -> None:
    label = f"{tensor.kind}s.{tensor.name}"
    check_name(fields, tensor.name, tensor.kind)
    if tensor.name in _RESERVED:
        raise fields.refuse(
            label,
            f"{tensor.name!r} is taken: no {tensor.kind} can have that name",
            hints=("choose another name",),
        )
    filtered = fields.weight is not None
    letters = FILTER_LETTERS if filtered else LETTERS
    for letter in tensor.shape:
        if letter not in letters and (filtered or not _BLOCKS.match(letter)):
            blocks = "" if filtered else ", and i/64, j/64 for blocks of 64"
            raise fields.refuse(
                label,
                f"{letter!r} is no axis of {tensor.name!r}",
                notes=(f"axes are {', '.join(letters)}{blocks}",),
            )
    if len(set(tensor.shape)) != len(tensor.shape):
        raise fields.refuse(label, f"an axis stands twice in the shape of {tensor.name!r}")


def _check_rows(fields: Fields, tensor: Declared, found: Mapping[str, Declared]) -> None:
    """Refuse the name that kernels of a filter have for a row of another tensor."""
    other = tensor.name[:-2]
    if fields.weight is None or other not in found or tensor.name[-2:] not in {"_a", "_b"}:
        return
    raise fields.refuse(
        f"{tensor.kind}s.{tensor.name}",
        f"{tensor.name!r} is taken: kernels call the rows of {other!r} {other}_a and {other}_b",
        hints=("choose another name",),
    )
