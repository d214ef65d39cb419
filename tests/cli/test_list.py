"""`attnc list`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from attnc.ops.shipped import shipped

TABLE = """\
 name           family   feature map  mask                   score or decay            normalize
 ───────────────────────────────────────────────────────────────────────────────────────────────
 based          state    taylor(2)    causal                 -                         sum
 flash          softmax  softmax      causal                 -                         softmax
 flash_alibi    softmax  softmax      causal                 s - slope[h] * (i - j)    softmax
 flash_softcap  softmax  softmax      causal                 softcap(s, 50)            softmax
 flash_window   softmax  softmax      causal & window(4095)  -                         softmax
 lightning      state    identity     causal                 exp(-slope[h])            none
 linear         state    elu(x) + 1   causal                 -                         sum
 retnet         state    identity     causal                 exp(log1p(-2**(-5 - h)))  none

attnc explain NAME says what becomes of one; attnc check FILE reads your own.
"""


def test_the_table_has_a_line_for_each_shipped_variant(attnc):
    done = attnc("list")
    assert (done.status, done.err) == (0, "")
    assert "\n".join(line.rstrip() for line in done.out.splitlines()).strip() == TABLE.strip()


def test_json_is_an_array_with_one_object_a_line(attnc):
    done = attnc("list", "--json")
    assert done.status == 0
    rows = json.loads(done.out)
    assert [row["name"] for row in rows] == list(shipped())
    lines = done.out.splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == rows


def test_an_object_says_what_the_variant_is(attnc):
    rows = {row["name"]: row for row in json.loads(attnc("list", "--json").out)}
    file = rows["lightning"].pop("file")
    assert rows["lightning"] == {
        "name": "lightning",
        "family": "state",
        "feature_map": "identity",
        "scale": "1",
        "score": "s",
        "mask": "causal",
        "decay": "exp(-slope[h])",
        "normalize": "none",
        "params": ["slope"],
        "inputs": [],
        "dim": None,
        "summary": shipped()["lightning"].summary,
        "digest": shipped()["lightning"].digest,
    }
    assert set(tomllib.loads(Path(file).read_text(encoding="utf-8"))) == {"lightning"}


def test_every_file_that_is_named_declares_its_variant(attnc):
    for row in json.loads(attnc("list", "--json").out):
        assert row["name"] in tomllib.loads(Path(row["file"]).read_text(encoding="utf-8"))
