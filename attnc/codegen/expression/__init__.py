"""Expressions as sympy has them, and as the text of a kernel."""
