"""`attnc list`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from attnc.ops.shipped import shipped

TABLE = """\
 name            family     weight, decay a token                     mask                                    normalize
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 based           state      taylor(2)                                 causal                                  sum
 block_sparse    softmax    exp(s)                                    causal & blocks(table, 64)              softmax
 butterfly_conv  conv       w[c, i-j]                                 causal                                  none
 document_mask   softmax    exp(s)                                    causal & documents(ids)                 softmax
 flash           softmax    exp(s)                                    causal                                  softmax
 flash_alibi     softmax    exp(s - slope[h] * (i - j))               causal                                  softmax
 flash_sigmoid   pointwise  sigmoid(s) of s + bias[h]                 causal                                  none
 flash_softcap   softmax    exp(softcap(s, 50))                       causal                                  softmax
 flash_window    softmax    exp(s)                                    causal & window(4095)                   softmax
 fox             softmax    exp(s + g[b, i, h] - g[b, j, h])          causal                                  softmax
 gla             state      identity, exp(-softplus(-g[b, t, h, k])   causal                                  none
                            / 16)
 gqa             softmax    exp(s)                                    causal                                  softmax
 hyena           conv       w[c, i-j]                                 causal                                  none
 lightning       state      identity, exp(-slope[h])                  causal                                  none
 linear          state      elu(x) + 1                                causal                                  sum
 long_conv       conv       w[c, i-j], smooth(7), squash(0.003)       causal                                  none
 longformer      softmax    exp(s)                                    window(256, 256) | prefix(1) | (i < 1)  softmax
 mamba2          state      identity, exp(-exp(a[h]) * dt[b, t, h])   causal                                  none
 mla             softmax    exp(s)                                    causal                                  softmax
 prefix_lm       softmax    exp(s)                                    causal | prefix(n[b])                   softmax
 rebased         state      s**2                                      causal                                  sum
 relu2           state      relu(x)**2                                causal                                  sum
 retnet          state      identity, exp(log1p(-2**(-5 - h)))        causal                                  none
 short_conv      conv       w[c, i-j]                                 causal & window(3)                      none
 sinks           softmax    exp(s)                                    causal & window(127)                    softmax
 streaming       softmax    exp(s)                                    causal & (window(1019) | prefix(4))     softmax
 window_taylor   terms      exp(s) + taylor(2)                        causal & window(63) | (i - j >= 64)     sum

attnc explain NAME says what becomes of one; attnc check FILE reads your own.
"""  # noqa: E501


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
        "about": shipped()["lightning"].about,
        "paper": {
            "title": "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths "
            "in Large Language Models",
            "arxiv": "2401.04658",
            "by": "Qin et al., 2024",
        },
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


def test_an_object_says_what_a_convolution_is(attnc):
    rows = {row["name"]: row for row in json.loads(attnc("list", "--json").out)}
    facts = rows["hyena"]
    assert {key: facts[key] for key in ("family", "weight", "skip", "pregate", "postgate")} == {
        "family": "conv", "weight": "w[c, i-j]", "skip": "D[c]",
        "pregate": "a[b, t, c]", "postgate": "g[b, t, c]",
    }  # fmt: skip
    assert rows["long_conv"]["transforms"] == ["smooth(7)", "squash(0.003)"]
    learned = rows["butterfly_conv"]
    assert (learned["outer"], learned["inner"]) == ("F1[z, k1, n1]", "F2[z, k2, n2]")
    assert not {"feature_map", "scale", "score", "decay", "dim"} & set(facts)


def test_every_file_that_is_named_declares_its_variant(attnc):
    for row in json.loads(attnc("list", "--json").out):
        assert row["name"] in tomllib.loads(Path(row["file"]).read_text(encoding="utf-8"))


def test_a_narrow_terminal_breaks_no_name(attnc, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = attnc("list").out.splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert {name for name in shipped() if not any(f" {name} " in line for line in lines)} == set()
