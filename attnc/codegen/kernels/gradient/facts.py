"""What the kernels of a backward are built from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.derive import Derivation
from attnc.codegen.expression.printer import Printer
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.operand import ragged_columns
from attnc.codegen.kernels.terms import Part, parts_of
from attnc.dsl.variant import Declared, Variant

# where a program walks the query heads of a group
HEAD_OF_GROUP = "i_h = i_hkv * (HQ // HKV) + i_g"


@dataclass(frozen=True, slots=True)
class GradientFacts:
    """The variant, its algebra, what was derived of it, and the head dims (K, V).

    Where a sum is `bordered`, a state carries one term and pairs are what it does not hold; of that
    term's own facts it says the same.
    """

    variant: Variant
    algebra: Algebra
    derivation: Derivation
    dims: tuple[int, int]
    printer: Printer
    min_columns: int
    whole: GradientFacts | None = None
    bordered: bool = False

    @property
    def softmax(self) -> bool:
        """Whether rows are divided by a sum that the forward kept as its log."""
        return self.algebra.has_lse

    @property
    def parts(self) -> tuple[Part, ...]:
        """The weights that the pairs have: the terms of a sum, or the only one."""
        return parts_of(self.variant, self.algebra)

    def of_part(self, part: Part) -> GradientFacts:
        """What one term is built from; `whole` is then this."""
        if not part.of_sum:
            return self
        return replace(
            self,
            variant=part.variant,
            algebra=part.algebra,
            derivation=self.derivation.terms[part.number],
            whole=self,
            bordered=self.bordered and part.number == self.algebra.folded,
        )

    @property
    def summed(self) -> bool:
        """Whether rows are normalised by the sum of their weights."""
        return self.algebra.normalize == "sum"

    @property
    def scale(self) -> float:
        """The declared scale at this head dim."""
        return self.variant.scale.value(self.dims[0])

    @property
    def scaled_last(self) -> bool:
        """Whether dq and dk are multiplied by the scale at the end, once for all pairs."""
        return self.scale != 1.0 and (self.softmax or self.algebra.score is not None)

    @property
    def row_factor(self) -> float:
        """What a linear weight's rows are multiplied by at the end of the forward."""
        if self.softmax or self.summed or not self.algebra.direct:
            return 1.0
        return float(self.algebra.coefficients[1]) * self.scale

    @property
    def k_mask(self) -> str:
        """The guard of K's padded columns."""
        return ragged_columns("m_k", self.dims[0], self.min_columns)

    @property
    def v_mask(self) -> str:
        """The guard of V's padded columns."""
        return ragged_columns("m_v", self.dims[1], self.min_columns)

    @property
    def declared(self) -> tuple[Declared, ...]:
        """Params, then inputs."""
        return (*self.variant.params, *self.variant.inputs)

    @property
    def rows(self) -> str:
        """How many rows of a head lie apart in a workspace: those of all packed sequences."""
        return "NQ" if self.algebra.mask.packed else "TQ"

    @property
    def keys(self) -> str:
        """How many keys of a head lie apart in a workspace."""
        return "NK" if self.algebra.mask.packed else "TK"

    @property
    def tokens(self) -> str:
        """The same where there are as many queries as keys: in passes over chunks."""
        return "NK" if self.algebra.mask.packed else "T"

    def tensors(self, *, tokens: str = "TQ") -> dict[str, TensorArgument]:
        """The arguments that more than one kernel reads, by name."""
        keys = "T" if tokens == "T" else "TK"
        io, acc = "io", "acc"
        by_channel = ", K" if self.algebra.by_channel else ""
        found = (
            TensorArgument("q", ("b", "t", "h", "k"), io, f"[B, {tokens}, HQ, K]"),
            TensorArgument("k", ("b", "t", "h", "k"), io, f"[B, {keys}, HKV, K]"),
            TensorArgument("v", ("b", "t", "h", "v"), io, f"[B, {keys}, HKV, V]"),
            TensorArgument("o", (), io, f"[B, {tokens}, HQ, V]"),
            TensorArgument("do", ("b", "t", "h", "v"), io, f"[B, {tokens}, HQ, V]"),
            TensorArgument("lse", (), acc, f"[B, HQ, {tokens}]: natural log"),
            TensorArgument("dlse", (), acc, f"[B, HQ, {tokens}]"),
            TensorArgument("norm", (), acc, f"[B, HQ, {tokens}]: sums of weights"),
            TensorArgument("gates", (), "fp64", f"[B, HS, TK{by_channel}]: summed log2 decay"),
            TensorArgument("delta", (), acc, f"[B, HQ, {tokens}]: what normalising gives back"),
        )
        return {tensor.name: tensor for tensor in found}
