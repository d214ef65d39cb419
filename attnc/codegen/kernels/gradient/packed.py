"""Passes of a backward over packed sequences, their workspaces moved too."""

from __future__ import annotations

from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import partial_sum
from attnc.codegen.kernels.sequences import in_sequences


def packed_pass(kernel: Kernel, facts: GradientFacts) -> Kernel:
    """The pass over packed sequences where the variant asks for them, else as it is."""
    derived = map(partial_sum, facts.derivation.partials)
    return in_sequences(kernel, facts.algebra, {sums.name: sums.axes[2:] for sums in derived})
