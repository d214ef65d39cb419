"""Expression -> LaTeX: what a variant computes, as one would write it on a board."""

from __future__ import annotations

from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Number, Ref

_LEVELS = {"|": 1, "&": 2, "cmp": 3, "+": 4, "-": 4, "*": 5, "neg": 6, "**": 7, "atom": 8}
_RELATIONS = {"<=": r"\le", ">=": r"\ge", "==": "=", "!=": r"\ne"}
_PLAIN = {"exp": "exp", "log": "log", "tanh": "tanh", "max": "max", "min": "min"}


def to_latex(node: Expr, names: dict[str, str] | None = None) -> str:
    """An expression as LaTeX; `names` says how some names are written."""
    return _latex(node, names or {})[0]


def _latex(node: Expr, names: dict[str, str]) -> tuple[str, int]:
    match node:
        case Number(value=value):
            if value.denominator == 1:
                return str(value.numerator), _LEVELS["atom"]
            return rf"\tfrac{{{value.numerator}}}{{{value.denominator}}}", _LEVELS["atom"]
        case Name(id="causal"):
            return r"j \le i", _LEVELS["cmp"]
        case Name(id="full"):
            return r"\text{all } j", _LEVELS["cmp"]
        case Name(id=name):
            return names.get(name, _name(name)), _LEVELS["atom"]
        case Ref(name=name, index=index):
            places = ",".join(names.get(letter, _name(letter)) for letter in index)
            return f"{_name(name)}_{{{places}}}", _LEVELS["atom"]
        case Negate(operand=operand):
            return f"-{_side(operand, names, _LEVELS['neg'])}", _LEVELS["neg"]
        case Binary(op="**", left=left, right=right):
            base = _side(left, names, _LEVELS["atom"])
            return f"{base}^{{{_latex(right, names)[0]}}}", _LEVELS["**"]
        case Binary(op="/", left=left, right=right):
            above, below = (_latex(side, names)[0] for side in (left, right))
            return rf"\frac{{{above}}}{{{below}}}", _LEVELS["atom"]
        case Binary(op=op, left=left, right=right):
            level = _LEVELS[op]
            first, second = _side(left, names, level), _side(right, names, level + 1)
            sign = r"\," if op == "*" else f" {op} "
            return f"{first}{sign}{second}", level
        case Call(function=function, args=args):
            return _call(function, args, names)
        case Compare(op=op, left=left, right=right):
            first, second = (_latex(side, names)[0] for side in (left, right))
            return f"{first} {_RELATIONS.get(op, op)} {second}", _LEVELS["cmp"]
        case Logic(op="~", operands=(operand,)):
            return rf"\neg{_side(operand, names, _LEVELS['atom'])}", _LEVELS["neg"]
        case Logic(op=op, operands=(left, right)):
            level = _LEVELS[op]
            joint = r"\;\wedge\;" if op == "&" else r"\;\vee\;"
            return f"{_side(left, names, level)}{joint}{_side(right, names, level + 1)}", level
    raise AssertionError(f"no LaTeX for {node!r}")


def _side(node: Expr, names: dict[str, str], level: int) -> str:
    text, own = _latex(node, names)
    return text if own >= level else rf"\left({text}\right)"


def _call(function: str, args: tuple[Expr, ...], names: dict[str, str]) -> tuple[str, int]:
    texts = [_latex(arg, names)[0] for arg in args]
    match function, args:
        case "window", (_,):
            return rf"i - j \le {texts[0]}", _LEVELS["cmp"]
        case "window", (_, right):
            if texts[0] == texts[1]:
                return rf"|i - j| \le {texts[0]}", _LEVELS["cmp"]
            return rf"i - {texts[0]} \le j \le i + {_side(right, names, 5)}", _LEVELS["cmp"]
        case "prefix", _:
            return f"j < {texts[0]}", _LEVELS["cmp"]
        case "documents", (Ref(name=name),):
            return rf"\text{{{name}}}_i = \text{{{name}}}_j", _LEVELS["cmp"]
        case "blocks", (Ref(name=name), _):
            at = ",".join(rf"\lfloor {letter}/{texts[1]} \rfloor" for letter in "ij")
            return rf"\text{{{name}}}_{{{at}}} \ne 0", _LEVELS["cmp"]
        case "softcap", _:
            return rf"{texts[1]}\tanh\!\left(\frac{{{texts[0]}}}{{{texts[1]}}}\right)", _LEVELS["*"]
        case "exp", (Call(function="log1p", args=(inner,)),):
            return f"1 + {_latex(inner, names)[0]}".replace("+ -", "- "), _LEVELS["+"]
        case "exp", _:
            return f"e^{{{texts[0]}}}", _LEVELS["**"]
        case "log1p", _:
            return rf"\log\left(1 + {texts[0]}\right)".replace("+ -", "- "), _LEVELS["atom"]
        case "sqrt", _:
            return rf"\sqrt{{{texts[0]}}}", _LEVELS["atom"]
    word = rf"\{function}" if function in _PLAIN else rf"\operatorname{{{function}}}"
    return rf"{word}({', '.join(texts)})", _LEVELS["atom"]


def _name(name: str) -> str:
    return name if len(name) == 1 else rf"\text{{{name}}}"
