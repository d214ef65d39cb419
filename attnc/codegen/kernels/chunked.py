"""The three passes of the chunked form."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.features import Features
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.output import output_kernel
from attnc.codegen.kernels.scan import scan_kernel
from attnc.codegen.kernels.state import state_kernel
from attnc.codegen.printer import Printer
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
    """`state`, `scan` and `output` at head dims (K, V)."""
    facts = ChunkFacts(variant, algebra, features, dims, printer, stateful, min_columns)
    return (state_kernel(facts), scan_kernel(facts), output_kernel(facts))
