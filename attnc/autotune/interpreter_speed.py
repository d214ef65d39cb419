"""What makes Triton's interpreter quicker in the worker, and changes nothing that it computes."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def leave_out_unasserted_checks() -> None:
    """Leave out the int64 twin of each integer operation, which a fifth of the time goes into.

    It is there to assert that nothing overflows, and asserts only with `debug`, which is off.
    """
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


def find_builtins_once() -> None:
    """Look up once which functions of the language a launch replaces, not at every launch."""

    @cache
    def builtins_of(language: Any) -> tuple[tuple[str, Any], ...]:
        members = inspect.getmembers(language)
        return tuple((name, member) for name, member in members if tl.core.is_builtin(member))

    def patch_builtins(language: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(language):
            if getattr(language, name) is not member:
                continue  # a function that a kernel calls: the launch has replaced it
            interpreter._patch_attr(language, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtins


def name_types_once() -> None:
    """Look up once which numpy type holds a scalar type: a table was made for each lookup."""
    look_up = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def numpy_type(dtype: Any) -> Any:
        if type(dtype) is not tl.core.dtype:
            return look_up(dtype)
        if dtype.name not in known:
            known[dtype.name] = look_up(dtype)
        return known[dtype.name]

    interpreter._get_np_dtype = numpy_type
