"""A folder of binaries with its manifest: what is read from it is verified. Copied into wheels."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.autotune.binary_kernel import BinaryKernel, load_launcher
from attnc.autotune.launcher import Driver, load_native
from attnc.errors import CacheError, InputError


class Package:
    """A folder of binaries, and its manifest, whose digest is known.

    Raises: CacheError where the manifest is not the one that was built.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self.name = folder.name
        self.manifest: dict[str, Any] = json.loads(
            self.read({"file": "manifest.json", "sha256": digest})
        )
        self._driver: Driver | None = None

    def read(self, entry: Mapping[str, Any]) -> bytes:
        """The bytes of a file that the manifest names, once they have its digest.

        Raises: CacheError where they have not, or the file is missing.
        """
        path = self._folder / entry["file"]
        try:
            data: bytes = path.read_bytes()
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CacheError(
                f"{path} was altered after it was built",
                notes=(f"its digest is not {entry['sha256'][:16]}…, as the manifest says",),
                hints=("install the package anew",),
            )
        return data

    def native(self) -> ModuleType | None:
        """The launcher in C, where the package holds one that runs here; a warning where not.

        Raises: CacheError where it was altered.
        """
        entry = self.manifest["launched_by"]
        if entry["kind"] == "ctypes":
            return None
        self.read(entry)
        try:
            return load_native(self._folder / entry["file"])
        except ImportError as error:
            text = f"{self.name} launches by ctypes, some microseconds slower: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return None

    @property
    def launches(self) -> str:
        """What launches the kernels, and why where it is not C."""
        entry = self.manifest["launched_by"]
        return f"C ({entry['platform']})" if entry["kind"] == "c" else f"ctypes: {entry['why']}"

    def launcher_on(self, module: Mapping[str, Any], device: torch.device) -> Callable[..., Any]:
        """The launcher of a module, made where its device is the current one."""
        with torch.cuda.device(device):
            return self.launcher(module)

    def launcher(self, module: Mapping[str, Any]) -> Callable[..., Any]:
        """The launcher of a module, its kernels in place."""
        if self._driver is None:
            self._driver = Driver(native=self.native())
        general = {entry["kernel"]: entry for entry in module["general"]}
        kernels = {
            entry["kernel"]: BinaryKernel(
                entry, general[entry["kernel"]], self.read, self._driver
            )
            for entry in module["kernels"]
        }  # fmt: skip
        place = str(self._folder / module["launcher"]["file"])
        package = __name__.rpartition(".")[0]
        space = load_launcher(self.read(module["launcher"]), place, package, kernels)
        run: Callable[..., Any] = space[module["facts"]["phase"]]
        return run


def capability_of(name: str, tensor: torch.Tensor) -> tuple[int, int]:
    """The capability of the device that a tensor lies on, by its name in a call.

    Raises: InputError where it lies on no CUDA device.
    """
    if not tensor.is_cuda:
        raise InputError(
            f"{name} is on {tensor.device}; the package holds binaries for CUDA devices"
        )
    return torch.cuda.get_device_capability(tensor.device)


def runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Whether binaries for a target run on a device.

    From 9.0 on they use what only that very architecture has; before, a later one of the same
    major version runs them.
    """
    backend, _, arch = target.partition(":")
    major, minor = divmod(int(arch), 10) if backend == "cuda" else (-1, 0)
    if major >= 9:
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]


def shown_module(module: Mapping[str, Any]) -> str:
    """What a module was built for, on one line."""
    facts = module["facts"]
    if "tokens" in facts:
        most = facts["most_tokens"]
        longer = "any" if most is None else f"at most {most:,}"
        return (
            f"{facts['phase']} {facts['dtype']} planned for {facts['tokens']:,} tokens, takes "
            f"{longer}, {facts['target']}"
        )
    stateful = " with state" if facts["stateful"] else ""
    return (
        f"{facts['phase']}{stateful} {facts['dtype']} K={facts['qk']} V={facts['v']} "
        f"{facts['target']}"
    )
