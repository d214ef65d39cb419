"""The three passes of the chunked form."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import Features
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.channel_gates import chunk_gates_kernel
from attnc.codegen.kernels.channel_pairs import pairs_kernel
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.chunk_sequences import chunks_in_sequences
from attnc.codegen.kernels.output import global_output_kernel, output_kernel
from attnc.codegen.kernels.scan import scan_kernel
from attnc.codegen.kernels.state import state_kernel
from attnc.codegen.kernels.sum_output import sum_output_kernel
from attnc.dsl.variant import Variant


def chunk_kernels(
    variant: Variant,
    algebra: Algebra,
    features: Features,
    dims: tuple[int, int],
    printer: Printer,
    *,
    stateful: bool,
    min_columns: int = 16,
) -> tuple[Kernel, ...]:
    """`state`, `scan` and `output` at head dims (K, V); no `scan` where one state serves all.

    The rows of a sum of terms are made by `sum_output`, which walks pairs too. Where every channel
    decays by itself, `chunk_gates` and `pairs` come before them.
    """
    if algebra.folded is not None:
        # all but the rows is made for the folded term as for a variant of its own
        term = variant.terms[algebra.folded]
        facts = ChunkFacts(
            term, algebra.state, features, dims, printer, stateful, min_columns, lagging=True
        )
        state = chunks_in_sequences(state_kernel(facts), algebra, needed="segments - 1")
        scan = chunks_in_sequences(scan_kernel(facts), algebra)
        return state, scan, sum_output_kernel(variant, algebra, facts)
    facts = ChunkFacts(variant, algebra, features, dims, printer, stateful, min_columns)
    if algebra.global_sum:
        return tuple(
            chunks_in_sequences(kernel, algebra)
            for kernel in (state_kernel(facts), global_output_kernel(facts))
        )
    before: tuple[Kernel, ...] = ()
    if algebra.by_channel:
        before = (chunk_gates_kernel(variant, algebra, printer), pairs_kernel(facts))
    # what a sequence's last segment folds leads to no row: to a state that is returned alone
    needed = "segments" if stateful else "segments - 1"
    state = chunks_in_sequences(state_kernel(facts), algebra, needed=needed)
    others = (chunks_in_sequences(k, algebra) for k in (scan_kernel(facts), output_kernel(facts)))
    return (*(chunks_in_sequences(kernel, algebra) for kernel in before), state, *others)
