"""Measurements on a GPU; each module is run with `python -m benchmarks.NAME`."""
