"""One answer on all ranks of a distributed job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from attnc.errors import WorkerError

T = TypeVar("T")


def from_rank_zero(work: Callable[[], T]) -> T:
    """What rank 0 makes of it, on every rank; outside a distributed job it is simply done.

    Every rank has to call. Raises: WorkerError on the others where rank 0 raises.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return work()
    box: list[Any] = ["", None]
    if dist.get_rank() == 0:
        try:
            box[1] = work()
        except BaseException as error:
            box[0] = f"{type(error).__name__}: {error}"
            dist.broadcast_object_list(box, src=0)
            raise
    dist.broadcast_object_list(box, src=0)
    failure, answer = box
    if failure:
        raise WorkerError(f"rank 0 failed: {failure}")
    made: T = answer
    return made
