"""How long the first call of each shipped op takes on this GPU, compile included, caches empty.

python -m benchmarks.firstcall OUT.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.record import write

LIMIT_S = 5.0


def one(name: str, dtype: str) -> dict[str, object]:
    """One op in this process: seconds of its first and of its second call."""
    import torch

    import attnc
    from attnc.ops.shipped import shipped

    variant = shipped()[name]
    head_dim, value_dim = (variant.dim.qk, variant.dim.v) if variant.dim else (128, 128)
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    q, k = (torch.randn(2, 1000, 8, head_dim, device="cuda", dtype=kind) for _ in range(2))
    v = torch.randn(2, 1000, 8, value_dim, device="cuda", dtype=kind)
    tensors = {tensor.name: torch.rand(8, device="cuda") for tensor in variant.params}
    torch.cuda.synchronize()
    op = attnc.compile(variant)
    times = []
    for _ in range(2):
        start = time.time()
        op(q, k, v, **tensors)
        torch.cuda.synchronize()
        times.append(round(time.time() - start, 3))
    return {"variant": name, "dtype": dtype, "dims": [head_dim, value_dim], "first_s": times[0],
            "second_s": times[1], "within": times[0] <= LIMIT_S}  # fmt: skip


def main() -> None:
    if len(sys.argv) == 4:
        print(json.dumps(one(sys.argv[2], sys.argv[3])))
        return
    rows: list[dict[str, object]] = []
    for name in ("flash", "flash_softcap", "linear", "based", "lightning"):
        for dtype in ("bf16", "fp32"):
            with tempfile.TemporaryDirectory() as folder:
                env = {**os.environ, "TRITON_CACHE_DIR": folder, "ATTNC_CACHE_DIR": folder}
                command = [sys.executable, "-m", "benchmarks.firstcall", "-", name, dtype]
                done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
            row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {
                "variant": name, "dtype": dtype, "error": done.stderr[-300:]}  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    write(sys.argv[1], rows)


if __name__ == "__main__":
    main()
