"""Which module of a wheel of convolutions a call takes, and what reaches it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attnc.errors import InputError
from attnc.ops import packaged_filter
from attnc.ops.packaged_filter import PackagedFilter


def module(phase, tokens, most, *, gradients=(), factors=None, target="cuda:90", dtype="bf16"):
    facts = {
        "phase": phase, "tokens": tokens, "most_tokens": most, "factors": factors, "dtype": dtype,
        "target": target, "gradients": list(gradients), "tensors": ["w"], "stateful": False,
    }  # fmt: skip
    most = "any" if most is None else most
    name = f"{phase} {tokens} {most} {' '.join(gradients)} {target}".replace("  ", " ")
    return {"name": name, "variant": "mine", "facts": facts}


def picked(modules, monkeypatch, *, tokens, phase="forward", wanted=(), factors=None, variant=None):
    """The name of the module that a call takes of some."""
    learned = factors is not None
    facts = {
        "digest": "", "summary": "", "tensors": [],
        "filter": {
            "weight": "w", "outer": "F1" if learned else None, "inner": "F2" if learned else None,
            "lowest": 0, "highest": None, "transforms": [],
        },
    }  # fmt: skip
    launched = []
    package = SimpleNamespace(
        manifest={"modules": modules, "variants": {"mine": facts}}, launches="",
        launcher_on=lambda found, device: launched.append(found["name"]),
    )  # fmt: skip
    monkeypatch.setattr(packaged_filter, "capability_of", lambda name, x: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    op = PackagedFilter(package, "mine")
    v = torch.empty(1, tokens, 1, dtype=torch.bfloat16)
    tensors = {}
    if factors:
        tensors = {"F1": torch.empty(2, factors[0], 1), "F2": torch.empty(2, factors[1], 1)}
    op._module(v, tensors, phase, wanted)
    op._module(v, tensors, phase, wanted)
    (name,) = launched
    return name


def test_a_call_takes_the_module_that_is_planned_for_the_nearest_length_above(monkeypatch):
    modules = [
        module("forward", 512, None), module("forward", 1024, 1024), module("forward", 8192, None),
        module("forward", 65536, 65536), module("forward", 64, None, target="cuda:80"),
        module("backward", 1024, 1024, gradients=("w",)), module("backward", 1024, 1024),
    ]  # fmt: skip
    for tokens, name in ((1, "512 any"), (1000, "1024 1024"), (1025, "8192 any"),
                         (9000, "65536 65536"), (70000, "8192 any")):  # fmt: skip
        assert picked(modules, monkeypatch, tokens=tokens).startswith(f"forward {name}")
    back = {"phase": "backward", "tokens": 5}
    assert picked(modules, monkeypatch, **back) == "backward 1024 1024 cuda:90"
    assert picked(modules, monkeypatch, wanted=("w",), **back) == "backward 1024 1024 w cuda:90"


def test_learned_factors_take_the_module_of_their_sizes(monkeypatch):
    modules = [module("forward", 512, 512, factors=[32, 32]),
               module("forward", 256, 256, factors=[32, 16])]  # fmt: skip
    assert picked(modules, monkeypatch, tokens=100, factors=(32, 32)).startswith("forward 512")
    assert picked(modules, monkeypatch, tokens=100, factors=(32, 16)).startswith("forward 256")


def test_a_sequence_that_is_longer_than_any_module_takes_is_refused_with_what_there_is(monkeypatch):
    with pytest.raises(InputError) as caught:
        picked([module("forward", 1024, 1024)], monkeypatch, tokens=5000)
    assert str(caught.value).splitlines() == [
        "error[A300]: 'mine' was not built for phase forward, dtype bf16, 5,000 tokens on a card "
        "(cuda:90)",
        "  note: built: forward bf16 planned for 1,024 tokens, takes at most 1,024, cuda:90",
        "  hint: attnc build NAME --target cuda:.. --tokens N --wheel makes another package",
    ]


def test_gates_reach_the_binaries_in_the_type_of_v_and_taps_in_fp32(monkeypatch):
    names = {"w": ("c", "T"), "D": ("c",), "g": ("b", "t", "c")}
    facts = {
        "digest": "gates", "summary": "",
        "tensors": [{"name": n, "shape": s, "grad": False, "kind": "param"}
                    for n, s in names.items()],
        "filter": {"weight": "w", "outer": None, "inner": None, "lowest": 0, "highest": None,
                   "transforms": []},
    }  # fmt: skip
    found = module("forward", 64, None)
    found["facts"]["tensors"] = list(names)
    seen = []

    def run(*arguments):
        seen.extend(x.dtype for x in arguments)
        return arguments[0]

    package = SimpleNamespace(
        manifest={"modules": [found], "variants": {"mine": facts}}, launches="",
        launcher_on=lambda module, device: run,
    )  # fmt: skip
    monkeypatch.setattr(packaged_filter, "capability_of", lambda name, x: (9, 0))
    monkeypatch.setattr(packaged_filter, "run_on", lambda device, run, given: run(*given))
    half = torch.bfloat16
    PackagedFilter(package, "mine")(
        torch.ones(1, 5, 2, dtype=half), w=torch.ones(2, 3, dtype=half),
        D=torch.ones(2, dtype=half), g=torch.ones(1, 5, 2),
    )  # fmt: skip
    assert seen == [half, torch.float32, torch.float32, half]
