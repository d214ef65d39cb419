"""Algebra, graph, plan and render: pure functions on frozen values."""
