"""The plan: every decision about a variant's kernels, and what each costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from attnc.codegen.algebra import Algebra
from attnc.codegen.derive import Derivation
from attnc.codegen.device import Device
from attnc.codegen.features import Features
from attnc.codegen.kernel import Kernel
from attnc.codegen.warp_groups import group_registers
from attnc.dsl.scale_names import SCALED_DTYPE
from attnc.dsl.variant import Variant

# the pass that adds to a sum of other programs
FUSED = "dqkv"
BACKENDS = ("triton", "gluon")
# what 8-bit tensors give where nothing else is asked for
SCALED_OUT = "bf16"
DTYPES = {"e4m3": 1, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
TRITON_TYPES = {
    "e4m3": "tl.float8e4nv",
    "fp16": "tl.float16",
    "bf16": "tl.bfloat16",
    "fp32": "tl.float32",
    "fp64": "tl.float64",
}
TORCH_TYPES = {
    "e4m3": "torch.float8_e4m3fn",
    "fp16": "torch.float16",
    "bf16": "torch.bfloat16",
    "fp32": "torch.float32",
    "fp64": "torch.float64",
}


def item_bytes(dtype: str, io: str) -> int:
    """Bytes of one element of a node's type."""
    if dtype == "io":
        return DTYPES[io]
    if dtype in {"acc", "tensor"}:
        return 8 if io == "fp64" else 4
    return {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2, "i32": 4, "i1": 1}[dtype]


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is asked for.

    `dims` are the head dims (K, V); `precision` is how the dots of fp32 tensors are made: `tf32x3`
    splits each into three tf32 products and keeps fp32's accuracy, `tf32` does not;
    `form` None lets the planner choose; `stateful` adds the initial and the final state.
    `phase` is `forward`, `backward` or `decode` (one token a sequence, a state in place); a
    backward gives the gradients of q, k, v and of the declared tensors in `wanted`, all that have
    one where it is None. `backend` None lets the planner choose. `cache` says how a decode
    without a state finds its keys: `contiguous`, `ring` or `paged`. `launcher` says how the kernels
    come to run: `compiled` at the call, `interpreted` on a CPU, or `packaged` as binaries. `out` is
    the type of the output, that of the tensors where it is empty, and bf16 for e4m3 tensors. Where
    `deterministic` is False, a backward may sum dq in an order that no two runs share.
    """

    variant: Variant
    device: Device
    dims: tuple[int, int]
    dtype: str = "bf16"
    form: str | None = None
    stateful: bool = False
    precision: str = "tf32x3"
    heads: tuple[int, int] = (1, 1)
    workload: Workload = field(default_factory=lambda: Workload())
    phase: str = "forward"
    wanted: tuple[str, ...] | None = None
    backend: str | None = None
    cache: str = ""
    launcher: str = "compiled"
    out: str = ""
    deterministic: bool = True

    @property
    def result(self) -> str:
        """The type of the output."""
        return self.out or (SCALED_OUT if self.dtype == SCALED_DTYPE else self.dtype)

    @property
    def decode(self) -> bool:
        """Whether one token a sequence is asked for, its state updated in place."""
        return self.phase == "decode"


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape that costs are stated for: batch, query and key tokens, query and key heads.

    A convolution's channels are its heads; `taps` are those of its filter, 0 for one a token;
    `factors` are N1 and N2 of a learned transform, where they are known.
    """

    batch: int = 4
    tq: int = 4096
    tk: int = 4096
    hq: int = 16
    hkv: int = 16
    taps: int = 0
    factors: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BufferUse:
    """One buffer of a kernel: where it lives and how much it takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    residency: str
    nbytes: int
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What one pass is predicted to take: SRAM a program, registers a thread, and the work."""

    sram_bytes: int
    registers: int
    hbm_bytes: int
    flops: int
    time_us: float
    buffers: tuple[BufferUse, ...]


@dataclass(frozen=True, slots=True)
class PassPlan:
    """One kernel with its tiles: `tiles` are the constexpr values by name.

    `options` are what its launch names beside them, for Triton's compiler.
    """

    kernel: Kernel
    tiles: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int
    cost: Cost

    @property
    def options(self) -> Mapping[str, int]:
        """Warps and stages; specialised warps start from four, and share one count of registers."""
        groups = self.tile.get("NW")
        if groups is None:
            return {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return {"num_warps": 4, "maxnreg": group_registers(groups).every}

    @property
    def described(self) -> bool:
        """Whether it is a kernel of gluon's, which takes descriptors; what lists tiles is not."""
        return any(tensor.box is not None for tensor in self.kernel.tensors)

    @property
    def tile(self) -> Mapping[str, int]:
        """Tile sizes by letter."""
        return dict(self.tiles)

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={value}" for name, value in self.tiles)
        return f"{self.kernel.name}: {tiles}, {self.num_warps} warps, {self.num_stages} stages"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that is not used, and why."""

    candidate: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Every decision about one variant on one device.

    `passes` run in order; `rejected` are the candidates that came before or after it in rank;
    `backend_reason` says why its kernels are of that backend. `otherwise` are the plans, ranked,
    of calls whose tensors the copy engine cannot read, where the planner chose gluon. `any_order`
    says that fused plans, which sum dq in no fixed order, are among its rivals, `order_reason` what
    came of asking for them; it is empty where nobody did.
    """

    variant: Variant
    algebra: Algebra
    features: Features | None
    device: Device
    dims: tuple[int, int]
    dtype: str
    form: str
    form_reason: str
    stateful: bool
    precision: str
    workload: Workload
    passes: tuple[PassPlan, ...]
    helpers: tuple[str, ...]
    programs: int
    min_chunks: int
    rejected: tuple[Rejected, ...] = ()
    backend: str = "triton"
    backend_reason: str = ""
    otherwise: tuple[Plan, ...] = ()
    derivation: Derivation | None = None
    decode: bool = False
    cache: str = ""
    out: str = ""
    any_order: bool = False
    order_reason: str = ""

    @property
    def deterministic(self) -> bool:
        """Whether two runs give the same bits: no pass adds where other programs do."""
        return all(step.kernel.name != FUSED for step in self.passes)

    @property
    def result(self) -> str:
        """The type of the output."""
        return self.out or self.dtype

    @property
    def phase(self) -> str:
        """`forward`, `backward` where derivatives were planned, or `decode`."""
        if self.decode:
            return "decode"
        return "forward" if self.derivation is None else "backward"

    @property
    def splits(self) -> int:
        """Into how many splits a decode cuts the keys of a sequence."""
        return self.passes[-1].tile.get("BN", 1)

    @property
    def acc(self) -> str:
        """The accumulators' type: fp32, or fp64 for the interpreter-only fp64 plan."""
        return "fp64" if self.dtype == "fp64" else "fp32"

    @property
    def sram_bytes(self) -> int:
        """The most SRAM any pass takes."""
        return max(step.cost.sram_bytes for step in self.passes)

    @property
    def time_us(self) -> float:
        """Roofline time of all passes at the workload."""
        return sum(step.cost.time_us for step in self.passes)

    @property
    def digest(self) -> str:
        """Names the kernel: the variant's meaning and every decision, not the device's name."""
        facts = {
            "variant": self.variant.digest,
            "dims": self.dims,
            "dtype": self.dtype,
            "form": self.form,
            "stateful": self.stateful,
            "precision": self.precision,
            "passes": [str(step) for step in self.passes],
            "programs": self.programs,
            "min_chunks": self.min_chunks,
        }
        if self.backend != "triton":
            facts["backend"] = self.backend
        if self.derivation is not None:
            wanted = self.derivation.partials
            facts["gradients"] = [partial.label for partial in wanted]
        if self.decode:
            facts["phase"] = f"{self.phase} {self.cache}"
        if self.result != self.dtype:
            facts["out"] = self.result
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
