"""`attnc sram-table`: every gap is a row, and the share within a tenth decides the status."""

from __future__ import annotations

import json


def test_a_small_table_is_json_with_a_row_for_each_kernel_of_a_candidate(attnc):
    done = attnc("sram-table", "--device", "a100", "--dtype", "bf16", "--count", "2", "--json")
    rows = json.loads(done.out)
    assert len({row["variant"] for row in rows}) == 2
    kernels = [(row["variant"], row["kernel"]) for row in rows]
    assert len(set(kernels)) == len(kernels)
    assert {"predicted", "compiled", "gap", "within", "variant"} <= set(rows[0])
    within = sum(row["within"] for row in rows)
    assert done.status == (0 if within * 10 >= len(rows) * 9 else 1)


def test_an_unknown_device_is_a_wrong_command_line(attnc):
    assert attnc("sram-table", "--device", "abacus", "--count", "1").status == 64
