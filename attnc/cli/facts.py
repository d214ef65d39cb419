"""The options that say what to plan for, as a `Request`: dims, heads, dtype, device, shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.cli.find import closest
from attnc.cli.targets import device_of_target
from attnc.codegen.algebra import analyse
from attnc.codegen.device import DEVICES, Device
from attnc.codegen.dtype import OUT_DTYPES
from attnc.codegen.kernels.cache_slots import CACHES
from attnc.codegen.plan import BACKENDS, Request, Workload
from attnc.codegen.planning.ring import folded_ring_size, ring_size
from attnc.dsl.facts import MAX_DIM, MIN_DIM
from attnc.dsl.scale_names import SCALED_DTYPE
from attnc.dsl.scales import of_dtype
from attnc.dsl.variant import Variant
from attnc.errors import UsageError

# fp64 is for the interpreter's gradients alone
DTYPES = ("bf16", "fp16", "fp32", SCALED_DTYPE)
FORMS = ("online", "parallel", "chunked", "recurrent", "toeplitz", "fft", "three_pass", "butterfly")
_DEFAULT_DIMS = (64, 64)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a command line says beside the variant; None leaves it to the declaration."""

    device: str = "h100"
    dtype: str = "bf16"
    dim: str | None = None
    heads: str | None = None
    sram: int | None = None
    form: str | None = None
    shape: str | None = None
    stateful: bool = False
    backward: bool = False
    backend: str | None = None
    decode: bool = False
    cache: str | None = None
    launcher: str = "compiled"
    out: str | None = None
    deterministic: bool = True

    def request(self, variant: Variant) -> Request:
        """The request for a plan of a variant.

        Raises:
            UsageError: an option that cannot be read, or a name that is not known.
            InputError: 8-bit tensors of a variant that takes none.
        """
        heads = self._heads(variant)
        return Request(
            variant=of_dtype(variant, known_dtype(self.dtype)),
            device=self._device(),
            dims=dims_of(variant, self.dim),
            dtype=self.dtype,
            form=self._form(),
            stateful=self.stateful,
            heads=heads or (1, 1),
            workload=self._workload(variant, heads),
            phase=self._phase(),
            cache=self._cache(variant),
            backend=known_backend(self.backend),
            launcher=self.launcher,
            out=self._out(),
            deterministic=self.deterministic,
        )

    def _heads(self, variant: Variant) -> tuple[int, int] | None:
        """Head counts; a convolution's channels are its heads, and `--shape B,T,C` has them."""
        channels = self._sizes(variant)[2:]
        if variant.family != "conv" or not channels:
            return heads_of(variant, self.heads)
        if self.heads is not None:
            raise UsageError(
                f"--shape {self.shape} and --heads {self.heads} both count the channels",
                hints=("leave --heads out",),
            )
        return channels[0], channels[0]

    def _sizes(self, variant: Variant) -> list[int]:
        """The numbers of --shape, none where it is left out."""
        if self.shape is None:
            return []
        wanted = "B,T or B,T,C" if variant.family == "conv" else "B,T or B,TQ,TK"
        return _numbers("--shape", self.shape, wanted, least=2, most=3)

    def _out(self) -> str:
        if self.out is None:
            return ""
        if self.dtype != SCALED_DTYPE:
            raise UsageError(
                f"--out is for --dtype {SCALED_DTYPE}",
                notes=(f"{self.dtype} tensors give a {self.dtype} output",),
            )
        if self.out not in OUT_DTYPES:
            raise _unknown("output dtype", self.out, OUT_DTYPES)
        return self.out

    def _phase(self) -> str:
        if self.decode and (self.backward or self.stateful or self.form is not None):
            raise UsageError(
                "--decode goes with none of --backward, --stateful and --form",
                notes=("a step has no gradients, always has its state, and one form",),
            )
        return "backward" if self.backward else "decode" if self.decode else "forward"

    def _workload(self, variant: Variant, heads: tuple[int, int] | None) -> Workload:
        work = Workload()
        if heads is not None:
            work = replace(work, hq=heads[0], hkv=heads[1])
        sizes = self._sizes(variant)
        if sizes:
            last = sizes[1] if variant.family == "conv" else sizes[-1]
            work = replace(work, batch=sizes[0], tq=sizes[1], tk=last)
        if not self.decode:
            return work
        if not sizes:
            work = replace(work, batch=64, tk=2048)
        return replace(work, tq=1)

    def _cache(self, variant: Variant) -> str:
        if not self.decode or not variant.over_cache:
            if self.cache is not None:
                raise UsageError(
                    "--cache is for --decode of a variant that no state holds: a softmax, a sum, "
                    "a pointwise weight"
                )
            return ""
        if self.cache is not None and self.cache not in CACHES:
            raise _unknown("cache", self.cache, CACHES)
        if self.cache == "ring":
            size, why = ring_size(variant, analyse(variant))
            if size is None:
                raise UsageError(f"{variant.name!r} has no ring", notes=(why,))
        if self.cache == "folded":
            size, why = folded_ring_size(variant, analyse(variant))
            if size is None:
                raise UsageError(f"{variant.name!r} has no state beside its cache", notes=(why,))
        return self.cache or "contiguous"

    def _device(self) -> Device:
        name = self.device.lower()
        device = device_of_target(name) if ":" in name else DEVICES.get(name)
        if device is None:
            raise UsageError(
                f"unknown device {self.device!r}",
                notes=(f"the known ones are {', '.join(DEVICES)}, and targets such as cuda:86",),
                hints=closest(name, DEVICES)
                or ("plan for a near one, with its budget: --device h100 --sram BYTES",),
            )
        return device if self.sram is None else device.with_sram(self.sram)

    def _form(self) -> str | None:
        if self.form is not None and self.form not in FORMS:
            raise _unknown("form", self.form, FORMS)
        if not self.stateful:
            return self.form
        if self.form not in {None, "chunked", "recurrent"}:
            raise UsageError(f"the {self.form} form keeps no state", hints=("leave --form out",))
        # where it is not legal, the planner says why
        return self.form or "chunked"


def known_dtype(name: str) -> str:
    """The dtype of that name.

    Raises:
        UsageError: no kernels are made for it.
    """
    if name not in DTYPES:
        raise _unknown("dtype", name, DTYPES)
    return name


def known_backend(name: str | None) -> str | None:
    """The backend of that name; None leaves it to the planner.

    Raises:
        UsageError: there is no such backend.
    """
    if name is not None and name not in BACKENDS:
        raise _unknown("backend", name, BACKENDS)
    return name


def dims_of(variant: Variant, text: str | None) -> tuple[int, int]:
    """Head dims (K, V): the option's, the declaration's, or 64.

    Raises:
        UsageError: dims that no kernel has, or any of a convolution.
    """
    if variant.family == "conv":
        if text is not None:
            raise UsageError(
                f"--dim is for head dims, and {variant.name!r} has none: it is a convolution",
                hints=("leave --dim out; --shape B,T,C counts its channels",),
            )
        return 1, 1  # a channel is a head of one number
    if text is not None:
        qk, *rest = _numbers("--dim", text, "qk,v", most=2)
        for size in (qk, *rest):
            if not MIN_DIM <= size <= MAX_DIM:
                raise UsageError(
                    f"--dim {text}: head dim {size} is outside {MIN_DIM} to {MAX_DIM}",
                    hints=("split or pad the heads",),
                )
        return qk, (rest or [qk])[0]
    return _DEFAULT_DIMS if variant.dim is None else (variant.dim.qk, variant.dim.v)


def heads_of(variant: Variant, text: str | None) -> tuple[int, int] | None:
    """Head counts (q, kv): the option's or the declaration's.

    Raises:
        UsageError: the key/value heads do not divide the query heads.
    """
    if text is None:
        return None if variant.heads is None else (variant.heads.q, variant.heads.kv)
    q, *rest = _numbers("--heads", text, "q,kv", most=2)
    kv = (rest or [q])[0]
    if q % kv:
        raise UsageError(
            f"--heads {text}: {q} query heads are no multiple of {kv} key/value heads",
            notes=("query head h reads key/value head h // (q / kv)",),
        )
    return q, kv


def _numbers(option: str, text: str, wanted: str, *, least: int = 1, most: int) -> list[int]:
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isascii() and part.strip().isdigit()]
    if len(numbers) != len(parts) or not least <= len(parts) <= most or 0 in numbers:
        raise UsageError(f"{option} {text!r} is not {wanted}", hints=("whole numbers from 1",))
    return numbers


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> UsageError:
    return UsageError(
        f"unknown {kind} {name!r}",
        notes=(f"the known ones are {', '.join(known)}",),
        hints=closest(name, known),
    )
