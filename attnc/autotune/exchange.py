"""Tensors between two processes: each memory region a file that both map, the rest JSON."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnc.errors import InputError, WorkerError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.float8_e4m3fn,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class _Region:
    """Bytes `start` to `stop` of a storage, copied to `path`."""

    storage: int
    start: int
    stop: int
    path: Path


class Exchange:
    """Private folders through which values pass; the first with room for a tensor takes it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    @classmethod
    def create(cls) -> Exchange:
        """New folders: in shared memory where there is some, and on disk for when it is full."""
        parents = [_SHARED_MEMORY] if os.access(_SHARED_MEMORY, os.W_OK) else []
        parents.append(Path(tempfile.gettempdir()))
        return cls([Path(tempfile.mkdtemp(prefix="attnc-", dir=parent)) for parent in parents])

    def clear(self) -> None:
        """Remove the files of one call."""
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                for file in folder.iterdir():
                    file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove files and folders."""
        self.clear()
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def pack(self, value: object) -> Any:
        """The value as JSON, its tensors copied into files: memory that they share goes once."""
        tensors = [tensor.detach() for tensor in _tensors(value)]
        regions = [self._write(group) for group in _overlapping(tensors)]
        return _pack(value, regions)

    def unpack(self, packed: Any, *, copy: bool) -> Any:
        """The value again; its tensors are the files mapped, or with `copy` memory of their own."""
        maps: dict[str, torch.Tensor] = {}
        return _unpack(packed, maps, copy)

    def _write(self, tensors: Sequence[torch.Tensor]) -> _Region:
        spans = [_span(tensor) for tensor in tensors]
        start = min(first for first, _ in spans) // _ALIGNMENT * _ALIGNMENT
        stop = max(last for _, last in spans)
        path = self._reserve(stop - start)
        storage = tensors[0].untyped_storage()
        source = torch.empty(0, dtype=torch.uint8).set_(storage, start, (stop - start,), (1,))
        _map(path, stop - start).copy_(source)
        return _Region(storage.data_ptr(), start, stop, path)

    def _reserve(self, size: int) -> Path:
        """A new file with its blocks allocated, so that a full folder is an error, not a SIGBUS."""
        failures = []
        for folder in self.folders:
            handle, name = tempfile.mkstemp(dir=folder)
            try:
                os.posix_fallocate(handle, 0, size)
                return Path(name)
            except OSError as error:
                Path(name).unlink()
                failures.append(f"{folder.parent}: {error.strerror}")
            finally:
                os.close(handle)
        raise WorkerError(
            f"no room for a tensor of {size:,} bytes on its way to the interpreter",
            notes=tuple(failures),
            hints=("free space there, or name another folder in TMPDIR",),
        )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        _check(value)
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _check(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise InputError(f"the interpreter takes CPU tensors, not one on {tensor.device}")
    if tensor.layout != torch.strided:
        raise InputError(f"the interpreter takes dense tensors, not the layout {tensor.layout}")
    if tensor.dtype not in _NAMES:
        raise InputError(
            f"the interpreter takes no {tensor.dtype} tensors",
            notes=("it takes " + ", ".join(DTYPES),),
        )


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and the byte after the last of a tensor in its storage."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(size) - 1) * int(stride) for size, stride in steps)
    first = int(tensor.storage_offset()) * tensor.element_size()
    return first, first + (last + 1) * tensor.element_size()


def _overlapping(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors grouped by memory they share; empty ones have none."""
    solid = [tensor for tensor in tensors if tensor.numel()]
    solid.sort(key=lambda tensor: (tensor.untyped_storage().data_ptr(), *_span(tensor)))
    groups: list[list[torch.Tensor]] = []
    reached: tuple[int, int] | None = None
    for tensor in solid:
        storage = tensor.untyped_storage().data_ptr()
        start, stop = _span(tensor)
        if reached is not None and reached[0] == storage and start < reached[1]:
            groups[-1].append(tensor)
            reached = (storage, max(stop, reached[1]))
        else:
            groups.append([tensor])
            reached = (storage, stop)
    return groups


def _pack(value: object, regions: Sequence[_Region]) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": _describe(value, regions)}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, regions) for item in value]}
    if isinstance(value, list):
        return {"list": [_pack(item, regions) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(name): _pack(item, regions) for name, item in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": _NAMES[value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise InputError(
        f"a {type(value).__name__} cannot go to the interpreter or come from it",
        notes=("tensors, numbers, text, None, and tuples, lists and dicts of these can",),
    )


def _describe(tensor: torch.Tensor, regions: Sequence[_Region]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "dtype": _NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
    }
    if not tensor.numel():
        return facts
    storage = tensor.untyped_storage().data_ptr()
    first, last = _span(tensor)
    region = next(
        region
        for region in regions
        if region.storage == storage and region.start <= first and last <= region.stop
    )
    facts["file"] = str(region.path)
    facts["size"] = region.stop - region.start
    facts["offset"] = (first - region.start) // tensor.element_size()
    return facts


def _unpack(packed: Any, maps: dict[str, torch.Tensor], copy: bool) -> Any:
    ((kind, content),) = packed.items()
    match kind:
        case "tensor":
            return _rebuild(content, maps, copy)
        case "tuple":
            return tuple(_unpack(item, maps, copy) for item in content)
        case "list":
            return [_unpack(item, maps, copy) for item in content]
        case "dict":
            return {name: _unpack(item, maps, copy) for name, item in content.items()}
        case "dtype":
            return DTYPES[content]
        case _:
            return content


def _rebuild(facts: dict[str, Any], maps: dict[str, torch.Tensor], copy: bool) -> torch.Tensor:
    dtype = DTYPES[facts["dtype"]]
    if "file" not in facts:
        return torch.empty_strided(facts["shape"], facts["strides"], dtype=dtype)
    name = facts["file"]
    if name not in maps:
        mapped = _map(Path(name), facts["size"])
        maps[name] = mapped.clone() if copy else mapped
    storage = maps[name].untyped_storage()
    return torch.empty(0, dtype=dtype).set_(
        storage, facts["offset"], facts["shape"], facts["strides"]
    )


def _map(path: Path, size: int) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
