"""The second backend, for sm_90: producer and consumer warps, from the same graph."""
