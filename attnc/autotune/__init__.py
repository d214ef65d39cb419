"""Emitted modules made to run: stored, loaded, interpreted, compiled ahead of time, packaged."""
