"""The process that interprets emitted modules: `python -m attnc.autotune.interpreter_worker`.

Its arguments are the folders of the exchange. It answers one call a line until its stdin ends.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from attnc.autotune.worker_channel import WorkerChannel


def main() -> None:
    """Take the pipes, repair the interpreter, and answer."""
    folders = [Path(folder) for folder in sys.argv[1:]]
    channel = WorkerChannel.take_over(at_end=lambda: _remove(folders))
    # triton reads it once, on import, and decides there what @triton.jit makes
    os.environ["TRITON_INTERPRET"] = "1"

    import numpy as np
    import torch

    from attnc.autotune import bfloat16, float8, interpreter_repairs, interpreter_speed
    from attnc.autotune.exchange import Exchange
    from attnc.autotune.gluon_interpreter.install import gluon_interpreted
    from attnc.autotune.module_cache import load_module

    # numpy computes, on tiles: torch only allocates, and threads would only spin
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    # a GPU does not warn of inf - inf either; the tail of stderr is kept for what matters
    np.seterr(all="ignore")
    float8.install()
    bfloat16.install()
    interpreter_repairs.repair_index()
    interpreter_repairs.know_tanh()
    interpreter_repairs.poison_empty()
    interpreter_speed.leave_out_unasserted_checks()
    interpreter_speed.find_builtins_once()
    interpreter_speed.name_types_once()
    exchange = Exchange(folders)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            # what a module imports stays its own; Triton asks for the real Gluon when it launches
            with gluon_interpreted():
                module = load_module(Path(request["path"]))
            function = getattr(module, request["function"])
            arguments = exchange.unpack(request["args"], copy=False)
            options = exchange.unpack(request["kwargs"], copy=False)
            return {"result": exchange.pack(function(*arguments, **options))}
        except Exception as error:
            return {"error": describe_error(error, request["path"])}

    channel.serve(answer)


def describe_error(error: BaseException, path: str) -> dict[str, Any]:
    """The root of an exception, and where in the emitted module it came up."""
    chain = [error]
    # Triton wraps what a kernel raises, once a level of calls
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    root = chain[-1]
    frames = {
        (frame.lineno or 0, frame.name, frame.line or "")
        for link in chain
        for frame in traceback.extract_tb(link.__traceback__)
        if frame.filename == path
    }
    deepest = [f for f in traceback.extract_tb(root.__traceback__) if f.filename == path]
    return {
        "message": f"{type(root).__name__}: {root}",
        "line": deepest[-1].lineno if deepest else 0,
        "text": deepest[-1].line if deepest else "",
        "frames": [list(frame) for frame in sorted(frames)],
        "traceback": traceback.format_exception(root)[-6:],
    }


def _remove(folders: list[Path]) -> None:
    from attnc.autotune.exchange import Exchange

    Exchange(folders).remove()


if __name__ == "__main__":
    main()
