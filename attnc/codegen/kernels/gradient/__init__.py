"""The kernels of the backward: what each computes comes from `codegen.derive` alone."""
