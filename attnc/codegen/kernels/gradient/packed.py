"""Passes of a backward over packed sequences, their workspaces moved too."""

from __future__ import annotations

from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.chunk_sequences import chunks_in_sequences
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import partial_sum
from attnc.codegen.kernels.sequences import Lanes, in_sequences


def packed_pass(kernel: Kernel, facts: GradientFacts) -> Kernel:
    """The pass over packed sequences where the variant asks for them, else as it is."""
    return in_sequences(kernel, facts.algebra, _lanes(facts))


def packed_chunks(kernel: Kernel, facts: GradientFacts) -> Kernel:
    """The same of a pass over chunks or segments."""
    return chunks_in_sequences(kernel, facts.algebra, _lanes(facts))


def _lanes(facts: GradientFacts) -> Lanes:
    """The axes of the workspaces of partial sums after batch and head."""
    derived = map(partial_sum, facts.derivation.partials)
    return {sums.name: sums.axes[2:] for sums in derived}
