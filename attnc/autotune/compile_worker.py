"""The process that compiles kernels: `python -m attnc.autotune.compile_worker SCRATCH`.

It answers one kernel a line until its stdin ends. An LLVM abort ends it, and no more than it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, verdict_to_json
from attnc.autotune.worker_channel import WorkerChannel

_DETAIL_LINES = 24


def main() -> None:
    """Take the pipes, set Triton up, and answer."""
    scratch = Path(sys.argv[1])
    channel = WorkerChannel.take_over()
    # an abort is an answer here, not a crash to be examined
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TRITON_CACHE_DIR"] = str(scratch)

    from triton import knobs

    # ptxas states registers and spills as it assembles; a cached binary would come without them
    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True
    # line info holds the path of the source: a binary must not depend on where it was made
    knobs.compilation.disable_line_info = True

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return verdict_to_json(_compile(request))
        except Exception as error:
            return _describe(error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    channel.serve(answer)


def _compile(request: dict[str, Any]) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    from attnc.autotune.module_cache import load_module

    kernel = request["kernel"]
    target = Target.parse(request["target"])
    function = getattr(load_module(Path(request["path"])), kernel["name"])
    arguments = kernel["arguments"]
    _check_names(function.arg_names, [argument["name"] for argument in arguments])
    kind = GluonASTSource if function.is_gluon() else ASTSource
    source = kind(
        fn=function,
        signature={argument["name"]: argument["type"] for argument in arguments},
        constexprs={
            argument["name"]: argument["value"]
            for argument in arguments
            if argument["type"] == "constexpr"
        },
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, argument in enumerate(arguments)
            if argument["divisible16"]
        },
    )
    started = time.perf_counter()
    arch = int(target.arch) if target.backend == "cuda" else target.arch
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            source,
            target=GPUTarget(target.backend, arch, target.warp_size),
            # the default differs between versions of Triton
            options={
                "num_warps": kernel["num_warps"],
                "num_stages": kernel["num_stages"],
                "enable_fp_fusion": True,
                **({} if kernel["registers"] is None else {"maxnreg": kernel["registers"]}),
            },
        )
    seconds = time.perf_counter() - started
    facts = compiled.metadata
    cuda = target.backend == "cuda"
    needs = _cuda_needs(log.getvalue()) if cuda else _hip_needs(compiled.asm["amdgcn"])
    return Compiled(
        kernel=kernel["name"],
        target=target,
        shared_bytes=facts.shared,
        registers=needs[0],
        spill_stores=needs[1],
        spill_loads=needs[2],
        num_warps=facts.num_warps,
        num_stages=facts.num_stages,
        binary=compiled.kernel,
        extension=target.extension,
        name=facts.name,
        seconds=round(seconds, 3),
        ptx=compiled.asm["ptx"] if cuda else None,
        scratch_bytes=getattr(facts, "global_scratch_size", None) or 0,
    )


def _describe(error: BaseException) -> dict[str, Any]:
    """One line on what went wrong, the rest as detail, and whether it would be so tomorrow."""
    from triton.compiler.errors import CompilationError

    # an error in a helper comes wrapped in one for each caller
    while isinstance(error, CompilationError) and isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    # Triton shows the kernel first and says what it refuses last
    said = lines.pop(-1 if isinstance(error, CompilationError) else 0)
    lasting = not isinstance(error, (OSError, MemoryError, ImportError))
    message = f"{type(error).__name__}: {said.strip()}"
    return {"error": message, "detail": lines[-_DETAIL_LINES:], "lasting": lasting}


def _check_names(has: list[str], described: list[str]) -> None:
    """Refuse a spec of another kernel: Triton would report it as some type error in the body."""
    if has != described:
        raise ValueError(f"the kernel takes {', '.join(has)}; its spec says {', '.join(described)}")


def _cuda_needs(log: str) -> tuple[int | None, int | None, int | None]:
    """Registers, spill stores and spill loads, as ptxas states them, with the functions called."""
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    stores = [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
    loads = [int(count) for count in re.findall(r"(\d+) bytes spill loads", log)]
    return (
        max(registers) if registers else None,
        sum(stores) if stores else None,
        sum(loads) if loads else None,
    )


def _hip_needs(assembly: str) -> tuple[int | None, int | None, int | None]:
    """VGPRs, and the bytes of those spilled, from the metadata that ends the assembly."""
    count = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    spill_bytes = 4 * int(spilled[1]) if spilled else None
    return (int(count[1]) if count else None, spill_bytes, spill_bytes)


if __name__ == "__main__":
    main()
