"""Python's syntax of an expression: its tree, where its nodes stand, and what no expression has."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping

from attnc.dsl.expr import Span
from attnc.dsl.grammar import OFFSET
from attnc.dsl.limits import MAX_NODES, MAX_TEXT, check_numbers
from attnc.dsl.source import Source
from attnc.errors import AttncError, LimitExceeded, MaskNotAffine, SyntaxRefused

_REFUSED: Mapping[type[ast.operator], str] = {
    ast.Mod: "%",
    ast.FloorDiv: "//",
    ast.BitXor: "^",
    ast.MatMult: "@",
    ast.LShift: "<<",
    ast.RShift: ">>",
}


class Syntax:
    """The text of one expression as Python reads it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # ast counts columns in its own text: a leading blank would be an indentation error
        self.shift = len(source.text) - len(source.text.lstrip())

    def body(self) -> ast.expr:
        """The expression's own node of the tree, once the text is known to be of a sane size.

        Raises:
            SyntaxRefused: text that is no Python, or that Python would read in another way.
            LimitExceeded: over 2,000 characters or 200 nodes, or a huge number.
        """
        self._check_text()
        text = self.source.text.strip()
        if not text:
            raise SyntaxRefused(f"{self.source.label} is empty", where=self.source.at(None))
        if "\n" in text or "\r" in text:
            raise SyntaxRefused(
                f"{self.source.label} is longer than one line",
                hints=("write the expression on one line",),
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `1if x` and the like: refused below anyway
                tree = ast.parse(text, mode="eval")
        except SyntaxError as error:
            raise self._syntax_error(error) from None
        except (RecursionError, MemoryError, ValueError):
            raise LimitExceeded(
                f"{self.source.label} is nested too deeply",
                hints=(f"an expression has at most {MAX_NODES} nodes",),
            ) from None
        count = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
        if count > MAX_NODES:
            raise LimitExceeded(
                f"{self.source.label} has {count} nodes, at most {MAX_NODES} are allowed",
                where=self.source.at(None),
            )
        return tree.body

    def _check_text(self) -> None:
        source, text = self.source, self.source.text
        if len(text) > MAX_TEXT:
            raise LimitExceeded(
                f"{source.label} has {len(text):,} characters, at most {MAX_TEXT:,} are allowed"
            )
        if not text.isascii():
            column = next(n for n, letter in enumerate(text) if not letter.isascii())
            raise SyntaxRefused(
                f"{text[column]!r} is not an ASCII character",
                where=source.at(Span(column, column + 1)),
            )
        if "#" in text:
            # Python would drop the rest as a comment, in silence
            column = text.index("#")
            raise SyntaxRefused(
                "'#' stands in no expression", where=source.at(Span(column, column + 1))
            )
        check_numbers(source)

    def _syntax_error(self, error: SyntaxError) -> AttncError:
        column = min(max((error.offset or 1) - 1, 0) + self.shift, len(self.source.text))
        hints: tuple[str, ...] = ()
        if re.search(r"(?<![<>=!])=(?!=)", self.source.text):
            hints = ("compare with ==",)
        return SyntaxRefused(
            f"{self.source.label} does not parse: {error.msg}",
            where=self.source.at(Span(column, column + 1)),
            hints=hints,
        )

    def span(self, node: ast.expr) -> Span:
        """Where a node stands in the text."""
        start = node.col_offset + self.shift
        end = (node.end_col_offset or node.col_offset + 1) + self.shift
        return Span(start, end)

    def refuse(
        self, node: ast.expr, message: str, *hints: str, notes: tuple[str, ...] = ()
    ) -> SyntaxRefused:
        """The error that points at a node."""
        return SyntaxRefused(
            message, where=self.source.at(self.span(node)), notes=notes, hints=hints
        )

    def outside(self, node: ast.expr, *, masked: bool) -> AttncError:
        """The error for a node that is not in the grammar; `masked` where a mask may stand."""
        match node:
            case ast.BoolOp(op=op):
                word, sign = ("and", "&") if isinstance(op, ast.And) else ("or", "|")
                return self.refuse(node, f"`{word}` is not in the grammar", f"write (a) {sign} (b)")
            case ast.UnaryOp(op=ast.Not()):
                return self.refuse(node, "`not` is not in the grammar", "write ~(a)")
            case ast.IfExp():
                return self.refuse(
                    node, "`if` is not in the grammar", "write where(condition, a, b)"
                )
        if isinstance(node, ast.BinOp):
            sign = _REFUSED[type(node.op)]
            hint = ("a power is written **",) if sign == "^" else ()
            if sign in {"%", "//"} and masked:
                return MaskNotAffine(
                    f"`{ast.unparse(node)}` is not affine in i and j",
                    where=self.source.at(self.span(node)),
                    notes=("a mask compares sums of i, j and numbers",),
                )
            return self.refuse(node, f"`{sign}` is not in the grammar", *hint)
        kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
        return self.refuse(
            node,
            f"{self.source.label} uses {kind}, which is not in the grammar",
            notes=(
                "an expression has numbers, names, arithmetic, comparisons, & | ~, functions "
                "and indexed tensors",
            ),
        )


def letter_of(part: ast.expr) -> str:
    """The letter that an index reads an axis at; empty for what is no letter."""
    match part:
        case ast.Name(id=name):
            return name
        case ast.BinOp(op=ast.Sub(), left=ast.Name(id="i"), right=ast.Name(id="j")):
            return OFFSET
    return ""
