"""Kernels held against the reference: what is drawn, by which criterion, and the report."""
