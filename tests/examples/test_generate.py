"""The example that generates: a model's steps say what one long prefill says."""

from __future__ import annotations

import json

import pytest
import torch

from examples import generate


@pytest.mark.timeout(300)
def test_a_tiny_based_model_generates_and_its_steps_agree_with_a_prefill(tmp_path, capsys):
    path = tmp_path / "generate.json"
    assert generate.main(["--tiny", "--check", "--models", "based", "--out", str(path)]) == 0
    (row,) = json.loads(path.read_text())
    assert (row["model"], row["prompt"], row["tokens"]) == ("based", 20, 3)
    assert row["decode_s"] > 0
    assert "of the logits apart" in capsys.readouterr().out


def test_a_step_that_forgets_what_came_before_is_noticed(monkeypatch):
    monkeypatch.setattr(generate.ShortConv, "begin", lambda self, *_: None)
    with torch.no_grad():
        layer = generate.ShortConv(generate.TINY)
        layer.past = torch.zeros(1, 2, 64)
        x = torch.randn(1, 5, 64)
        whole = layer.prefill(x)[:, -1:]
        layer.prefill(x[:, :4])
        torch.testing.assert_close(layer.step(x[:, 4:]), whole)
        layer.past.zero_()
        assert (layer.step(x[:, 4:]) - whole).abs().max() > 1e-3
