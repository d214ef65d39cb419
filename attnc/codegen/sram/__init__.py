"""The shared memory that Triton's compiler will take for a graph, predicted by its own rules."""
