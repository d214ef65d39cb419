"""A variant: one declared attention, frozen, checked, and equal however it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from attnc.dsl.digest import digest_of, meaning_facts
from attnc.dsl.expr import Expr, used_names
from attnc.dsl.scale_names import SCALES
from attnc.dsl.text import number_text, to_text

if TYPE_CHECKING:
    from attnc.dsl.feature import FeatureMap
    from attnc.dsl.head_facts import Dim, Heads
    from attnc.dsl.mask import MaskForm
    from attnc.dsl.paper import Paper


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor that a variant declares: `shape` in axis letters, `kind` is param or input."""

    name: str
    shape: tuple[str, ...]
    grad: bool = False
    kind: str = "param"


@dataclass(frozen=True, slots=True)
class Scale:
    """What multiplies q.k: a number, or 1/sqrt(K) where `number` is None."""

    number: Fraction | None

    def value(self, head_dim: int) -> float:
        """The scale at a qk head dim."""
        return head_dim**-0.5 if self.number is None else float(self.number)

    def __str__(self) -> str:
        return "rsqrt(d)" if self.number is None else number_text(self.number)


@dataclass(frozen=True, slots=True)
class Meaning:
    """Everything about a variant but its name and the facts it is planned with.

    `terms` are those of a sum, variants without a value or a normaliser of their own; `factor` is
    what the weights of a term are multiplied by. `scaled` says that q, k and v come with scales.
    """

    feature_map: FeatureMap
    scale: Scale
    score: Expr
    value: Expr | None
    mask_form: MaskForm
    log_decay: Expr | None
    sink: Expr | None
    normalize: str
    chunk: int | str
    params: tuple[Declared, ...]
    inputs: tuple[Declared, ...]
    factor: Expr | None = None
    terms: tuple[Variant, ...] = ()
    scaled: bool = False


class Variant:
    """One attention variant.

    Args:
        name: a lowercase identifier; it names the emitted kernels.
        feature_map: `"softmax"`, `"identity"`, `"taylor(p)"`, an expression in s, or one in x that
            is applied to q and k.
        scale: a number or `"rsqrt(d)"`; required, so that nothing is scaled twice by omission.
        score: an expression in s, i, j, h, b, hkv, H, d and declared tensors, where the weight is
            a softmax or pointwise.
        value: an expression in v, h, hkv, b, H and declared tensors: what a key hands over in place
            of v, element by element; a token axis is read at t, the channels of v at c.
        mask: masks joined with & | ~, see docs/masks.md.
        log_decay: an expression in h, H and declared tensors, at most 0 (state family only).
        sink: an expression in h, H and declared tensors: the logit of a key of value 0 that every
            row sees (softmax only). Source: gpt-oss (arXiv 2508.10925).
        normalize: `"softmax"` (implied by that map), `"sum"` or `"none"`.
        chunk: tokens a chunk, a power of two from 16 to 256, or `"auto"`.
        params, inputs: declared tensors by name; those of Python expressions are found.
        dim, heads: facts to plan with before tensors exist.
        about, paper: a line on what it is, and title, by, arxiv of a paper; no part of its meaning.

    Raises:
        DeclarationError: a field that is refused; its text says where and why.
    """

    __slots__ = ("about", "dim", "heads", "mask", "meaning", "name", "paper")

    name: str
    mask: Expr
    meaning: Meaning
    dim: Dim | None
    heads: Heads | None
    about: str
    paper: Paper | None

    def __init__(
        self,
        name: str,
        *,
        feature_map: str | Expr,
        scale: str | int | float | Fraction | Expr,
        score: str | Expr = "s",
        value: str | Expr = "v",
        mask: str | Expr = "full",
        log_decay: str | Expr | None = None,
        sink: str | int | float | Expr | None = None,
        normalize: str | None = None,
        chunk: int | str = "auto",
        params: Mapping[str, object] | Iterable[object] = (),
        inputs: Mapping[str, object] | Iterable[object] = (),
        dim: object = None,
        heads: object = None,
        about: str = "",
        paper: object = None,
    ) -> None:
        from attnc.dsl.check import checked
        from attnc.dsl.fields import Fields

        fields = Fields(
            name=name, feature_map=feature_map, scale=scale, score=score, value=value,
            mask=mask, log_decay=log_decay, sink=sink, normalize=normalize, chunk=chunk,
            params=params, inputs=inputs, dim=dim, heads=heads, about=about, paper=paper,
        )  # fmt: skip
        self._take(checked(fields))

    @classmethod
    def from_checked(cls, parts: Mapping[str, object]) -> Variant:
        """A variant of fields that `check.checked` has read."""
        variant = cls.__new__(cls)
        variant._take(parts)
        return variant

    def _take(self, parts: Mapping[str, object]) -> None:
        for slot, part in parts.items():
            object.__setattr__(self, slot, part)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Variant is frozen: {name!r} cannot be set")

    def __reduce__(self) -> tuple[object, ...]:
        slots = sorted({*Variant.__slots__, *self.__slots__})
        return (type(self).from_checked, ({slot: getattr(self, slot) for slot in slots},))

    @property
    def feature_map(self) -> FeatureMap:
        """What the weight is."""
        return self.meaning.feature_map

    @property
    def scale(self) -> Scale:
        """What multiplies q.k."""
        return self.meaning.scale

    @property
    def score(self) -> Expr:
        """The score as an expression in s."""
        return self.meaning.score

    @property
    def value(self) -> Expr | None:
        """What a key hands over as an expression in v, None where that is v itself."""
        return self.meaning.value

    @property
    def mask_form(self) -> MaskForm:
        """The mask in disjunctive normal form."""
        return self.meaning.mask_form

    @property
    def documents(self) -> tuple[str, ...]:
        """The inputs that say which document a token is of."""
        return self.meaning.mask_form.documents

    @property
    def mask_tensors(self) -> tuple[str, ...]:
        """The declared tensors that the mask names: whole numbers, without gradients."""
        return tuple(sorted({*used_names(self.mask), *self.meaning.mask_form.tensors}))

    @property
    def log_decay(self) -> Expr | None:
        """The log of the decay a token, or None."""
        return self.meaning.log_decay

    @property
    def sink(self) -> Expr | None:
        """The logit of a key of value 0 that every row sees, or None."""
        return self.meaning.sink

    @property
    def normalize(self) -> str:
        """`softmax`, `sum` or `none`."""
        return self.meaning.normalize

    @property
    def chunk(self) -> int | str:
        """Tokens a chunk, or `auto`."""
        return self.meaning.chunk

    @property
    def params(self) -> tuple[Declared, ...]:
        """The declared parameters."""
        return self.meaning.params

    @property
    def inputs(self) -> tuple[Declared, ...]:
        """The declared inputs."""
        return self.meaning.inputs

    @property
    def factor(self) -> Expr | None:
        """What the weights of a term are multiplied by, None for 1."""
        return self.meaning.factor

    @property
    def terms(self) -> tuple[Variant, ...]:
        """The terms of a sum; none where there is one weight."""
        return self.meaning.terms

    @property
    def scaled(self) -> bool:
        """Whether q, k and v come with a scale a head each, as 8-bit floats."""
        return self.meaning.scaled

    @property
    def family(self) -> str:
        """`softmax` where the weight is exp(score), `state` of a polynomial, else `pointwise`."""
        kind = self.feature_map.kind
        return kind if kind in {"softmax", "pointwise"} else "state"

    @property
    def has_lse(self) -> bool:
        """Whether a call can return the log of what each row is divided by."""
        return self.family in {"softmax", "terms"}

    @property
    def over_cache(self) -> bool:
        """Whether decode keeps keys and values, since no state of fixed size holds the weight."""
        return self.family != "state"

    @property
    def used(self) -> frozenset[str]:
        """Names of the declared tensors that some expression reads."""
        named = used_names(self.score, self.value, self.log_decay, self.sink, self.factor)
        of_terms = [term.used for term in self.terms]
        scales = SCALES if self.scaled else ()
        return named.union(self.mask_form.all_tensors, scales, *of_terms)

    @property
    def digest(self) -> str:
        """sha256 of the meaning alone: not the name, the key order or the white space."""
        return digest_of(meaning_facts(self))

    @property
    def summary(self) -> str:
        """The declaration on one line."""
        parts = [f"feature_map {self.feature_map}", f"scale {self.scale}"]
        if to_text(self.score) != "s":
            parts.append(f"score {to_text(self.score)}")
        if self.value is not None:
            parts.append(f"value {to_text(self.value)}")
        parts.append(f"mask {to_text(self.mask)}")
        if self.log_decay is not None:
            parts.append(f"log_decay {to_text(self.log_decay)}")
        if self.sink is not None:
            parts.append(f"sink {to_text(self.sink)}")
        parts.append(f"normalize {self.normalize}")
        if self.chunk != "auto":
            parts.append(f"chunk {self.chunk}")
        return ", ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What is legal and probably not meant."""
        from attnc.dsl.check import warnings_of

        return warnings_of(self)

    def _key(self) -> tuple[object, ...]:
        return (self.name, self.digest, self.dim, self.heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variant) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {self.summary})"
