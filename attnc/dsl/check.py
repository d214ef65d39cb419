"""Fields as they were written -> the checked parts of a variant."""

from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from attnc.dsl.decay import check_decay
from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Ref, to_text, walk
from attnc.dsl.feature import FeatureMap, feature_map, nonnegative
from attnc.dsl.mask import MaskProblem, mask_form
from attnc.dsl.parse import FUNCTIONS, INDEX_NAMES, Scope, Source, limited_text, parse
from attnc.dsl.variant import Declared, Dim, Heads, Meaning, Scale, Variant, used_names
from attnc.errors import DeclarationError, FieldError, SyntaxRefused, shown

LETTERS = ("b", "h", "hkv", "i", "j", "t", "k", "c")
SCORE_NAMES = frozenset({"s", "i", "j", "h", "b", "hkv", "H", "d"})
DECAY_NAMES = frozenset({"h", "H"})
MASK_NAMES = frozenset({"i", "j", "causal", "full"})
MASK_FUNCTIONS = frozenset({"window", "prefix"})
ELEMENTWISE = frozenset(FUNCTIONS) - MASK_FUNCTIONS - {"taylor"}
MIN_DIM, MAX_DIM = 16, 256
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Fields:
    """What was written for one variant; `sources` places the fields in a file."""

    name: str
    feature_map: object
    scale: object
    score: object = "s"
    mask: object = "full"
    log_decay: object = None
    normalize: object = None
    chunk: object = "auto"
    params: object = ()
    inputs: object = ()
    dim: object = None
    heads: object = None
    sources: Mapping[str, Source] = field(default_factory=dict)

    def source(self, name: str, text: str) -> Source:
        """Where a field's text stands."""
        found = self.sources.get(name)
        if found is not None and found.text == text:
            return found
        return Source(text, f"{name} of {self.name!r}")

    def refuse(
        self,
        name: str,
        message: str,
        *,
        notes: tuple[str, ...] = (),
        hints: tuple[str, ...] = (),
    ) -> FieldError:
        """The error of a whole field."""
        source = self.sources.get(name)
        return FieldError(
            message, where=None if source is None else source.at(None), notes=notes, hints=hints
        )


def checked(fields: Fields) -> dict[str, object]:
    """Read and check every field.

    Raises:
        DeclarationError: the first field that is refused.
    """
    _check_name(fields, fields.name, "variant")
    declared = _declared(fields)
    by_name = {tensor.name: tensor for tensor in declared}
    feature = _feature(fields)
    softmax = feature.kind == "softmax"
    score = _expression(fields, "score", fields.score, SCORE_NAMES, by_name)
    if not softmax and to_text(score) != "s":
        raise fields.refuse(
            "score",
            f"{fields.name!r} has a score and no softmax",
            notes=("a score bends the exponent of exp(s); a state keeps polynomials of s alone",),
            hints=("write the weight as feature_map, a polynomial in s",),
        )
    mask = _mask_expression(fields)
    try:
        form = mask_form(mask)
    except MaskProblem as problem:
        source = fields.source("mask", _text(fields.mask))
        raise problem.error(
            problem.message,
            where=source.at(problem.span),
            notes=(problem.note,) if problem.note else (),
            hints=(problem.hint,) if problem.hint else (),
        ) from None
    log_decay: Expr | None = None
    if fields.log_decay is not None:
        log_decay = _expression(fields, "log_decay", fields.log_decay, DECAY_NAMES, by_name)
        source = fields.source("log_decay", _text(fields.log_decay))
        check_decay(fields.name, log_decay, source, form, softmax=softmax)
    _check_grad(fields, declared, score, log_decay)
    meaning = Meaning(
        feature_map=feature,
        scale=_scale(fields),
        score=score,
        mask_form=form,
        log_decay=log_decay,
        normalize=_normalize(fields, softmax),
        chunk=_chunk(fields),
        params=tuple(tensor for tensor in declared if tensor.kind == "param"),
        inputs=tuple(tensor for tensor in declared if tensor.kind == "input"),
    )
    return {
        "name": fields.name,
        "mask": mask,
        "meaning": meaning,
        "dim": _dim(fields),
        "heads": _heads(fields),
    }


def _text(value: object) -> str:
    return to_text(value) if isinstance(value, Expr) else str(value)


def _check_name(fields: Fields, name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.match(name) or keyword.iskeyword(name):
        raise FieldError(
            f"{name!r} is no name for a {what}",
            notes=("a name is a lowercase identifier: it becomes part of the emitted source",),
            hints=("use a to z, 0 to 9 and _, a letter first",),
        )
    limit = 40 if what == "variant" else 24
    if len(name) > limit:
        raise FieldError(f"the {what} name {name!r} has {len(name)} characters, at most {limit}")


_RESERVED = (
    (INDEX_NAMES - {"x"})
    | frozenset(FUNCTIONS)
    | {"causal", "full", "q", "v", "o", "lse", "states", "gates", "decays", "index", "weight",
       "initial_state", "final_state", "return_lse", "return_state", "form", "precision", "tl",
       "torch", "triton", "first", "last", "lo", "hi", "forward", "acc", "io",
       "range", "float", "min", "max", "len", "dict", "tuple"}
)  # fmt: skip


def _declared(fields: Fields) -> tuple[Declared, ...]:
    found: dict[str, Declared] = {}
    for kind, value in (("param", fields.params), ("input", fields.inputs)):
        for tensor in _declarations(fields, kind, value):
            if tensor.name in found:
                raise FieldError(f"{tensor.name!r} is declared twice in {fields.name!r}")
            found[tensor.name] = tensor
    for value in (fields.score, fields.log_decay):
        if isinstance(value, Expr):
            limited_text(_lifted(value), f"an expression of {fields.name!r}")
            for node in walk(_lifted(value)):
                if isinstance(node, Ref | Name) and node.declared is not None:
                    kept = found.setdefault(node.declared.name, node.declared)
                    if kept != node.declared:
                        raise FieldError(
                            f"{kept.name!r} is declared twice in {fields.name!r}, and differently"
                        )
    for tensor in found.values():
        _check_declared(fields, tensor)
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
        raise fields.refuse(label, f"the shape of {label} is no list of letters: {shape!r}")
    grad = facts.get("grad", False)
    if not isinstance(grad, bool):
        raise fields.refuse(label, f"grad of {label} is {grad!r}, not true or false")
    return Declared(name, tuple(shape), grad, kind)


def _check_declared(fields: Fields, tensor: Declared) -> None:
    label = f"{tensor.kind}s.{tensor.name}"
    _check_name(fields, tensor.name, tensor.kind)
    if tensor.name in _RESERVED:
        raise fields.refuse(
            label,
            f"{tensor.name!r} is taken: a {tensor.kind} cannot have that name",
            hints=("choose another name",),
        )
    for letter in tensor.shape:
        if letter not in LETTERS:
            raise fields.refuse(
                label,
                f"{letter!r} is no axis of {tensor.name!r}",
                notes=(f"axes are {', '.join(LETTERS)}",),
            )
    if len(set(tensor.shape)) != len(tensor.shape):
        raise fields.refuse(label, f"an axis stands twice in the shape of {tensor.name!r}")


def _feature(fields: Fields) -> FeatureMap:
    value = fields.feature_map
    if not isinstance(value, str | Expr):
        raise fields.refuse(
            "feature_map",
            f"feature_map of {fields.name!r} is {value!r}, not text or an expression",
        )
    label = f"feature_map of {fields.name!r}"
    text = value if isinstance(value, str) else limited_text(_lifted(value), label)
    return feature_map(text, fields.source("feature_map", text))


def _lifted(value: Expr) -> Expr:
    from attnc.dsl.expr import lift

    return lift(value)


def _expression(
    fields: Fields,
    name: str,
    value: object,
    names: frozenset[str],
    declared: Mapping[str, Declared],
) -> Expr:
    """Text and Python expressions take one road: the parser's whitelist."""
    label = f"{name} of {fields.name!r}"
    text = limited_text(_lifted(value), label) if isinstance(value, Expr) else value
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = repr(text)
    if not isinstance(text, str):
        raise fields.refuse(name, f"{name} of {fields.name!r} is {value!r}, not an expression")
    source = fields.source(name, text)
    expr = parse(source, Scope(names, ELEMENTWISE, declared))
    for node in walk(expr):
        if not isinstance(node, Ref):
            continue
        if {"k", "c"} & set(node.index):
            raise DeclarationError(
                f"{to_text(node)} varies a channel",
                where=source.at(node.span),
                notes=("no kernel takes a score or a decay a channel yet",),
                hints=("use a decay a token: g[t, h]",),
            )
        wrong = {"score": {"t"}, "log_decay": {"i", "j"}}[name] & set(node.index)
        if wrong:
            raise DeclarationError(
                f"{to_text(node)} is read at {min(wrong)}, which {name} has not",
                where=source.at(node.span),
                hints=("a score reads a token axis at i or j, a decay at t",),
            )
    if isinstance(expr, Compare | Logic):
        raise SyntaxRefused(
            f"{name} of {fields.name!r} is a condition, not a number",
            where=source.at(None),
            hints=("write where(condition, a, b)",),
        )
    return expr


def _mask_expression(fields: Fields) -> Expr:
    value = fields.mask
    if not isinstance(value, str | Expr):
        raise fields.refuse("mask", f"mask of {fields.name!r} is {value!r}, not a mask")
    label = f"mask of {fields.name!r}"
    text = limited_text(_lifted(value), label) if isinstance(value, Expr) else value
    source = fields.source("mask", text)
    names = MASK_NAMES | (INDEX_NAMES - {"s", "x"})
    declared = {tensor.name: tensor for tensor in _declared(fields)}
    return parse(source, Scope(names, MASK_FUNCTIONS | ELEMENTWISE, declared))


def _scale(fields: Fields) -> Scale:
    value = fields.scale
    if isinstance(value, Expr):
        value = limited_text(_lifted(value), f"scale of {fields.name!r}")
    if isinstance(value, str):
        if value.replace(" ", "") == "rsqrt(d)":
            return Scale(None)
        if len(value) < 40 and "e" not in value.lower():
            with contextlib.suppress(ValueError, ZeroDivisionError):
                value = Fraction(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise fields.refuse(
            "scale",
            f"scale of {fields.name!r} is {shown(value)}",
            notes=('a scale is a finite number, or "rsqrt(d)" for 1/sqrt(K)',),
        )
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise fields.refuse("scale", f"scale of {fields.name!r} is {value!r}, not a finite number")
    number = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    if number == 0 or abs(number) > 10**6:
        raise fields.refuse(
            "scale",
            f"scale of {fields.name!r} is {shown(value)}: 0 or over 1e6 in size is no scale",
        )
    return Scale(number)


def _normalize(fields: Fields, softmax: bool) -> str:
    value = fields.normalize
    if softmax:
        if value not in {None, "softmax"}:
            raise fields.refuse(
                "normalize",
                f"normalize of {fields.name!r} is {value!r}, softmax normalises by itself",
                hints=("leave normalize out",),
            )
        return "softmax"
    if value not in {"sum", "none"}:
        what = "is missing" if value is None else f"is {value!r}"
        raise fields.refuse(
            "normalize",
            f"normalize of {fields.name!r} {what}",
            notes=('a state is normalised by the sum of its weights ("sum"), or not ("none")',),
            hints=('add normalize = "sum", or normalize = "none"',),
        )
    return str(value)


def _chunk(fields: Fields) -> int | str:
    value = fields.chunk
    if value == "auto":
        return "auto"
    power = isinstance(value, int) and not isinstance(value, bool) and value & (value - 1) == 0
    if not power or not isinstance(value, int) or not 16 <= value <= 256:
        raise fields.refuse(
            "chunk",
            f"chunk of {fields.name!r} is {shown(value)}",
            notes=('a chunk is "auto", or a power of two from 16 to 256',),
        )
    return value


def _pair(fields: Fields, name: str, value: object, keys: tuple[str, str]) -> tuple[int, int]:
    parts: tuple[object, ...] = ()
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(keys))
        if unknown:
            raise fields.refuse(
                name,
                f"{name} of {fields.name!r} has an unknown key {unknown[0]!r}",
                notes=(f"{name} has {keys[0]} and {keys[1]}",),
            )
        parts = tuple(value.get(key) for key in keys)
    elif isinstance(value, tuple | list):
        parts = tuple(value)
    elif isinstance(value, int):
        parts = (value, value)
    whole = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
    if len(parts) != 2 or len(whole) != 2 or min(whole) < 1:
        raise fields.refuse(
            name,
            f"{name} of {fields.name!r} is {shown(value)}",
            hints=(f"write {name} = {{ {keys[0]} = 64, {keys[1]} = 64 }}",),
        )
    return whole[0], whole[1]


def _dim(fields: Fields) -> Dim | None:
    if fields.dim is None:
        return None
    dim = (fields.dim.qk, fields.dim.v) if isinstance(fields.dim, Dim) else fields.dim
    qk, v = _pair(fields, "dim", dim, ("qk", "v"))
    for size in (qk, v):
        if not MIN_DIM <= size <= MAX_DIM:
            raise fields.refuse(
                "dim", f"head dim {size} of {fields.name!r} is outside {MIN_DIM} to {MAX_DIM}"
            )
    return Dim(qk, v)


def _heads(fields: Fields) -> Heads | None:
    if fields.heads is None:
        return None
    heads = (fields.heads.q, fields.heads.kv) if isinstance(fields.heads, Heads) else fields.heads
    q, kv = _pair(fields, "heads", heads, ("q", "kv"))
    if q % kv:
        raise fields.refuse(
            "heads", f"{q} query heads of {fields.name!r} are not a multiple of {kv} kv heads"
        )
    return Heads(q, kv)


def _check_grad(
    fields: Fields, declared: tuple[Declared, ...], score: Expr, log_decay: Expr | None
) -> None:
    """A tensor whose every use is inside a condition has no gradient; say so when declared."""
    smooth: set[str] = set()
    for expression in (score, log_decay):
        if expression is not None:
            smooth |= _smooth_names(expression)
    used = used_names(score, log_decay)
    for tensor in declared:
        if tensor.grad and tensor.name in used and tensor.name not in smooth:
            raise fields.refuse(
                f"{tensor.kind}s.{tensor.name}",
                f"{tensor.name!r} asks for a gradient and has none",
                notes=("it is used in conditions alone, which are flat almost everywhere",),
                hints=("set grad = false",),
            )


def _smooth_names(expr: Expr) -> set[str]:
    match expr:
        case Ref(name=name):
            return {name}
        case Name(id=name):
            return {name}
        case Negate(operand=operand):
            return _smooth_names(operand)
        case Binary(left=left, right=right):
            return _smooth_names(left) | _smooth_names(right)
        case Call(function="where", args=(_, yes, no)):
            return _smooth_names(yes) | _smooth_names(no)
        case Call(args=args):
            return {name for arg in args for name in _smooth_names(arg)}
    return set()


def warnings_of(variant: Variant) -> tuple[str, ...]:
    """What is legal and probably not meant."""
    found: list[str] = []
    number = variant.scale.number
    sign = 1 if number is None or number > 0 else -1
    if variant.normalize == "sum" and not nonnegative(variant.feature_map, sign):
        found.append(
            f"{variant.name}: the weight {variant.feature_map} is not provably nonnegative, so a "
            'row sum may vanish or change sign under normalize = "sum"'
        )
    used = variant.used
    found.extend(
        f"{variant.name}: {tensor.kind} {tensor.name!r} is declared and not used"
        for tensor in (*variant.params, *variant.inputs)
        if tensor.name not in used
    )
    if not variant.mask_form.clauses:
        found.append(f"{variant.name}: the mask hides every key")
    return tuple(found)
