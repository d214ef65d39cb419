"""NAME on a command line -> variants: a shipped one, FILE:NAME, or all of a FILE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from attnc.dsl.toml_file import load
from attnc.dsl.variant import Variant
from attnc.errors import AttncError, UnknownName, UsageError
from attnc.ops.shipped import shipped


@dataclass(frozen=True, slots=True)
class Found:
    """The variants that an argument names; `whole_file` where it names a FILE and no NAME.

    `file` is the FILE, and empty of a shipped variant.
    """

    argument: str
    variants: tuple[Variant, ...]
    whole_file: bool = False
    file: str = ""

    @property
    def one(self) -> Variant:
        """The only variant.

        Raises:
            UsageError: the file has several.
        """
        if len(self.variants) > 1:
            names = ", ".join(variant.name for variant in self.variants)
            raise UsageError(
                f"{self.argument} declares {len(self.variants)} variants, and one is wanted",
                notes=(f"they are {names}",),
                hints=(f"name one: {self.argument}:{self.variants[0].name}",),
            )
        return self.variants[0]


def find(argument: str) -> Found:
    """What one argument names.

    Raises:
        UnknownName: no shipped variant is called that, or none of the file.
        DeclarationError: the file is refused.
    """
    known = shipped()
    if argument in known:
        return Found(argument, (known[argument],))
    if Path(argument).is_file():
        return Found(argument, tuple(load(argument).values()), whole_file=True, file=argument)
    file, colon, name = argument.rpartition(":")
    if colon and file:
        declared = load(file)
        if name in declared:
            return Found(argument, (declared[name],), file=file)
        raise _unknown(f"{file} declares no variant {name!r}", name, declared, "it declares")
    if "/" in argument or argument.endswith(".toml"):
        return Found(argument, tuple(load(argument).values()), whole_file=True, file=argument)
    raise _unknown(f"unknown variant {argument!r}", argument, known, "the shipped ones are")


def find_all(arguments: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of several arguments, each once.

    Raises:
        UsageError: two different variants have one name.
    """
    found: dict[str, Variant] = {}
    for variant in (variant for argument in arguments for variant in find(argument).variants):
        if found.setdefault(variant.name, variant) != variant:
            raise UsageError(
                f"two different variants are called {variant.name!r}",
                notes=("a package names its files after its variants",),
                hints=("rename one, or build them into two folders",),
            )
    return tuple(found.values())


def closest(word: str, known: Iterable[str]) -> tuple[str, ...]:
    """The hint that a name near `word` was meant, or no hint."""
    close = get_close_matches(word, list(known), 1)
    return (f"did you mean {close[0]!r}?",) if close else ()


def _unknown(
    message: str, name: str, known: Mapping[str, Variant], introduction: str
) -> AttncError:
    return UnknownName(
        message,
        notes=(f"{introduction} {', '.join(known)}",),
        hints=closest(name, known) or ("a file of your own is named FILE:NAME, or FILE",),
    )
