"""Standing in for Triton's modules of Gluon, in a process that interprets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import triton.experimental

from attnc.autotune.gluon_interpreter import barriers, copies, kernel, language, products

_GLUON = "triton.experimental.gluon"
_HOPPER = f"{_GLUON}.language.nvidia.hopper"


@contextmanager
def gluon_interpreted() -> Iterator[None]:
    """Inside, what a module imports from Gluon is the interpreter's."""
    copying = {
        **vars(copies),
        # as releases before 3.9 name them
        "async_copy_global_to_shared": copies.async_load,
        "async_copy_shared_to_global": copies.async_store,
    }
    hopper = {
        "fence_async_shared": copies.fence_async_shared,
        "mbarrier": _module(f"{_HOPPER}.mbarrier", vars(barriers)),
        "tma": _module(f"{_HOPPER}.tma", copying),
        "warpgroup_mma": products.warpgroup_mma,
        "warpgroup_mma_wait": products.warpgroup_mma_wait,
    }
    spoken = _module(f"{_GLUON}.language", {n: getattr(language, n) for n in language.__all__})
    modules = [
        spoken,
        _module(_GLUON, {"jit": kernel.jit, "language": spoken}),
        _module(_HOPPER, hopper),
        _module(f"{_GLUON}.nvidia.hopper", {"TensorDescriptor": copies.TensorDescriptor}),
    ]
    before = {made.__name__: sys.modules.get(made.__name__) for made in modules}
    owner = vars(triton.experimental)
    was = owner.get("gluon")
    sys.modules.update({made.__name__: made for made in modules})
    owner["gluon"] = sys.modules[_GLUON]
    try:
        yield
    finally:
        _restore(sys.modules, before)
        _restore(owner, {"gluon": was})


def _module(name: str, names: Mapping[str, object]) -> ModuleType:
    made = ModuleType(name)
    vars(made).update({key: value for key, value in names.items() if not key.startswith("_")})
    return made


def _restore(where: dict[str, ModuleType], what: Mapping[str, ModuleType | None]) -> None:
    for name, module in what.items():
        if module is None:
            where.pop(name, None)
        else:
            where[name] = module
