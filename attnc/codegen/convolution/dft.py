"""A discrete Fourier transform of N = N1 * N2 points as two complex matrix products.

With n = n1 * N2 + n2 and k = k1 + N1 * k2 (Cooley and Tukey, 1965),

    A[k1, n2] = sum_n1 F1[k1, n1] X[n1, n2]        Z[k1, k2] = sum_n2 (A T)[k1, n2] F2[n2, k2]

where F are DFT matrices and T[k1, n2] = exp(-2 pi i k1 n2 / N). Z lies as the products leave it:
whoever multiplies it stores its own spectrum in the same order, and the inverse goes back the same
way with every factor conjugated, so nothing is permuted. Half of the points are zeros, the padding
that keeps a convolution from wrapping: F1 is [N1, N1 / 2] going in and coming out.

Both factors are scaled by 1 / sqrt of their size, so that no stage grows and fp16 does not
overflow. A complex product is four real ones, two to an accumulator. F2 is symmetric; the products
take it transposed, which is how a warp group's right operand may be narrower than 64 columns.
"""

from __future__ import annotations

from attnc.codegen.graph import SETUP, GraphBuilder, Operand
from attnc.codegen.kernel import TensorArgument

POINTS, HALF, OUTER, INNER = ("N1", "N2"), ("NH", "N2"), ("N1", "NH"), ("N2", "N2")
CONSTANTS = ("N1", "N2", "NH")
TABLES = (
    TensorArgument("f1", (), "io", "[3, N1, NH]: re, im, -im"),
    TensorArgument("f2", (), "io", "[3, N2, N2]: re, im, -im"),
    TensorArgument("twiddle", (), "acc", "[2, N1, N2]"),
)
# what the tables of a letter hold
_WHAT = {"f": "DFT", "l": "learned factor", "t": "learned factor, turned,"}

Pair = tuple[str, str]


class Dft:
    """Adds the stages of transforms to a kernel's graph; `region` is where its statements stand.

    `outer` and `inner` name the tables of its factors. What is `paired` has two rows, the real and
    the imaginary part; else there is one, which is real, going in and coming out.
    """

    def __init__(
        self, builder: GraphBuilder, region: str, outer: str = "f1", inner: str = "f2", *,
        paired: bool = True,
    ) -> None:  # fmt: skip
        self._builder, self.region = builder, region
        self._outer, self._inner, self._paired = outer, inner, paired
        self._count = 0

    def load_factors(self, *tables: str) -> None:
        """Load both factors, or those of `tables`, once a program."""
        outer = "r_1[:, None] * NH + r_h[None, :]"
        inner = "r_2[:, None] * N2 + r_2[None, :]"
        for table, shape, index, size, parts in (
            (self._outer, OUTER, outer, "N1 * NH", "rin" if self._paired else "ri"),
            (self._inner, INNER, inner, "N2 * N2", "rin"),
        ):  # fmt: skip
            if tables and table not in tables:
                continue
            for place, part in enumerate(parts):
                start = ("", f" + {size}", f" + 2 * {size}")[place]
                line = (f"o_{table} = {index}",) if not place else ()
                self._builder.load(
                    f"b_{table}{part}", SETUP, shape, dtype="io", tensor=table, lines=line,
                    address=f"{table}{start} + o_{table}",
                    note=f"the {_WHAT[table[0]]} of {shape[0]} points" if not place else "",
                )  # fmt: skip

    def enter(self, x: Pair, note: str) -> None:
        """The outer stage and its twiddles: b_hr, b_hi [N1, N2] of x [NH, N2]."""
        real, imag = x
        first, second = [(self._f1("r"), _of(real, HALF))], [(self._f1("i"), _of(real, HALF))]
        if self._paired:
            first.append((self._f1("n"), _of(imag, HALF)))
            second.insert(0, (self._f1("r"), _of(imag, HALF)))
        self._product(("b_ar", "b_ai"), POINTS, first, second, f"{note}: [N1, NH] @ [NH, N2]")
        self._twist(("b_ar", "b_ai"), "-", "+")

    def forward(self, x: Pair, z: Pair, note: str) -> None:
        """z [N1, N2] of x [NH, N2], whose other rows are zero."""
        self.enter(x, note)
        self._product(
            z, POINTS,
            [(_of("b_hr", POINTS), self._f2("r")), (_of("b_hi", POINTS), self._f2("n"))],
            [(_of("b_hr", POINTS), self._f2("i")), (_of("b_hi", POINTS), self._f2("r"))],
            "[N1, N2] @ [N2, N2]",
        )  # fmt: skip

    def leave(self, z: Pair) -> None:
        """The inner stage going back and its twiddles: b_hr, b_hi [N1, N2] of z [N1, N2]."""
        real, imag = z
        self._product(
            ("b_ar", "b_ai"), POINTS,
            [(_of(real, POINTS), self._f2("r")), (_of(imag, POINTS), self._f2("i"))],
            [(_of(imag, POINTS), self._f2("r")), (_of(real, POINTS), self._f2("n"))],
            "and back: [N1, N2] @ [N2, N2]",
        )  # fmt: skip
        self._twist(("b_ar", "b_ai"), "+", "-")

    def inverse(self, z: Pair, y: Pair) -> None:
        """y [NH, N2] of z [N1, N2], by the conjugate factors; the other half is not computed."""
        self.leave(z)
        real = [(self._turned("r"), _of("b_hr", POINTS)), (self._turned("i"), _of("b_hi", POINTS))]
        imag = [(self._turned("r"), _of("b_hi", POINTS)), (self._turned("n"), _of("b_hr", POINTS))]
        self._product(y, HALF, real, imag if self._paired else [], "[NH, N1] @ [N1, N2]")

    def _product(
        self, out: Pair, shape: tuple[str, str], real: list[tuple[Operand, Operand]],
        imag: list[tuple[Operand, Operand]], note: str,
    ) -> None:  # fmt: skip
        self._count += 1
        for buffer, sums in zip(out, (real, imag), strict=True):
            for place, (left, right) in enumerate(sums):
                self._builder.dot(
                    buffer, self.region, shape, left, right, into=buffer if place else "",
                    name=f"product {self._outer} {self._count} {buffer} {place}",
                    note="" if place or buffer is out[1] else note,
                )  # fmt: skip

    def _twist(self, a: Pair, less: str, more: str) -> None:
        """a times the twiddles, or their conjugates, as operands of the next product."""
        self._count += 1
        real, imag = a
        for part, start in (("r", ""), ("i", " + N1 * N2")):
            self._builder.load(
                f"b_t{part}", self.region, POINTS, tensor="twiddle",
                address=f"twiddle{start} + o_n",
                name=f"load twiddle {self._outer} {part} {self._count}",
            )  # fmt: skip
        reads = (real, imag, "b_tr", "b_ti")
        lines = (
            f"b_hr = {real} * b_tr {less} {imag} * b_ti",
            f"b_hi = {imag} * b_tr {more} {real} * b_ti",
        )
        for buffer, line in zip(("b_hr", "b_hi"), lines, strict=True):
            self._builder.map(
                buffer, self.region, POINTS, line,
                name=f"twist {self._outer} {buffer} {self._count}", dtype="io", reads=reads,
            )  # fmt: skip

    def _f1(self, part: str) -> Operand:
        name = f"b_{self._outer}{part}"
        return Operand(name, name, OUTER)

    def _turned(self, part: str) -> Operand:
        name = f"b_{self._outer}{part}"
        return Operand(name, f"tl.trans({name})", ("NH", "N1"), transposed=True)

    def _f2(self, part: str) -> Operand:
        name = f"b_{self._inner}{part}"
        return Operand(name, f"tl.trans({name})", INNER, transposed=True)


def _of(buffer: str, shape: tuple[str, str]) -> Operand:
    return Operand(buffer, buffer, shape)
