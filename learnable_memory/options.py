"""The mechanism behind config.py: a dataclass becomes flags, is checked when it is made, and is saved as JSON.

A field says everything about itself once, in `option(...)`: default, meaning, unit, flags and what is legal. From that
come the command line (`parse`), the checks (also for options that are made in a notebook) and the JSON (`to_dict`).

    @dataclass(frozen=True, kw_only=True)
    class DemoOptions(Options):
        epochs: int = option(20, "passes over the data", flags=("-e", "--epochs"), legal=at_least(1))

    parse(DemoOptions, "Train a little.", ["-e", "3"])      # wrong use: one line on stderr, exit code 2
    DemoOptions(epochs=0)                                   # wrong use: ValueError or TypeError

Standard library only: a command line must answer `--help` before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from learnable_memory.wording import did_you_mean

REQUIRED = dataclasses.MISSING
METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


# ---------------------------------------------------------------------------------------------------- what is legal


class Rule(NamedTuple):
    """What values are legal, as a test and in words; the words complete the sentence "it has to be ..."."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: int) -> Rule:
    """A number that is not below `low`."""
    return Rule(lambda value: value >= low, f"{low} or more")


def between(low: int, high: int) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"between {low} and {high}")


def above(low: float) -> Rule:
    """A finite number larger than `low`."""
    return Rule(lambda value: low < value < math.inf, f"a finite number above {low:g}")


def one_of(choices: Sequence[str]) -> Rule:
    """A name from a closed list."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def matching(pattern: str, words: str) -> Rule:
    """Text that the whole pattern matches; `words` say what that is."""
    return Rule(lambda value: re.fullmatch(pattern, value) is not None, words)


FRACTION = Rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
NOT_EMPTY = matching(r"\S(.*\S)?", "a name or path without spaces around it")


# ---------------------------------------------------------------------------------------------------- the mechanism


def option(
    default: Any = REQUIRED,
    help: str = "",
    *,
    flags: Sequence[str] = (),
    group: str = "settings",
    choices: Sequence[str] | None = None,
    legal: Rule | None = None,
    unit: str | None = None,
    default_help: str | None = None,
) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: the value when the flag is not given; left out, the flag is required.
        help: the meaning, for `--help`.
        flags: how it is written, `("-e", "--epochs")`; empty means `--NAME_OF_THE_FIELD`. One word without dashes,
            `("NAME",)`, is required and given without a flag; of a tuple, one value or more.
        group: the heading under which `--help` lists it.
        choices: the legal names, for a closed list.
        legal: the legal values otherwise. None (for `int | None`) is always legal, and of a tuple each item is checked.
        unit: what a number counts, for `--help`.
        default_help: the default in words, where the value alone would not explain itself.
    """
    metadata = {
        "help": help,
        "flags": tuple(flags),
        "group": group,
        "choices": tuple(choices) if choices else None,
        "legal": one_of(choices) if choices else legal,
        "unit": unit,
        "default_help": default_help,
    }
    return dataclasses.field(default=default, metadata=metadata)


class FieldType(NamedTuple):
    """An annotation taken apart: `tuple[int, ...] | None` is FieldType(item=int, many=True, optional=True)."""

    item: type
    many: bool
    optional: bool


def field_types(cls: type) -> dict[str, FieldType]:
    """The types of the fields of `cls`; scalars, `| None` and `tuple[X, ...]` are what options are made of."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
        if optional:
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        many = typing.get_origin(hint) is tuple
        found[name] = FieldType(typing.get_args(hint)[0] if many else hint, many, optional)
    return found


def field_flags(field: dataclasses.Field) -> tuple[str, ...]:
    """How the flag of a field is written, in all its spellings."""
    return field.metadata["flags"] or (f"--{field.name}",)


def is_positional(field: dataclasses.Field) -> bool:
    """Whether a field's values are given without a flag."""
    return not field_flags(field)[0].startswith("-")


def long_flag(field: dataclasses.Field) -> str:
    """The spelling that error messages use: a user of a notebook recognises the field's name in it."""
    own = f"--{field.name}"
    return own if own in field_flags(field) else field_flags(field)[-1]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class: converts what is meant, then checks every field by its own rule.

    Text becomes a path, a list or a single value a tuple, and a whole number a float, where the field is one.

    Raises:
        TypeError: a value is of another type than its field.
        ValueError: a value is not legal; the message says what was given and what is legal.
    """

    def __post_init__(self) -> None:
        kinds = field_types(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue  # what it stands for is filled in by the class's own __post_init__, or it stands for nothing
            self._set(field.name, _checked(long_flag(field), value, kinds[field.name], field.metadata["legal"]))

    def _set(self, name: str, value: Any) -> None:
        """Set a field while the options are being made; afterwards they are frozen."""
        object.__setattr__(self, name, value)


def _checked(flag: str, value: Any, kind: FieldType, legal: Rule | None) -> Any:
    if value is None and kind.optional:
        return None
    if not kind.many:
        return _checked_item(flag, value, kind.item, legal)
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = (value,)  # one value is a list of one: `lr=0.1` as on a command line
    if not value:
        raise ValueError(f"{flag} is empty, but it needs at least one value.")
    return tuple(_checked_item(flag, item, kind.item, legal) for item in value)


def _checked_item(flag: str, value: Any, kind: type, legal: Rule | None) -> Any:
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: `epochs=True` would count as 1.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        given = f"{value!r} of type {type(value).__name__}"
        raise TypeError(f"{flag} is {given}, but it has to be of type {kind.__name__}.")
    if legal is not None and not legal.holds(value):
        shown = str(value) if isinstance(value, Path) else value
        raise ValueError(f"{flag} is {shown!r}, but it has to be {legal.words}.")
    return value.expanduser() if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------------------- the command line

AnyOptions = TypeVar("AnyOptions", bound=Options)


class OneLineParser(argparse.ArgumentParser):
    """Wrong use ends in one line on stderr and exit code 2, without the usage block above it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Argparse's own, which remembers what was given, for errors."""
        self._given = [str(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with one line on stderr and exit code 2; what was misspelt gets the name nearest to it."""
        self.exit(2, f"{self.prog}: error: {message}{self._nearest(message)} (--help lists the options)\n")

    def _nearest(self, message: str) -> str:
        """For the first option that there is not, and for a word that is none of its choices."""
        legal = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        flags = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        wrong = next((flag for flag in flags if flag not in legal), None)
        if wrong is not None and message.startswith("unrecognized arguments:"):
            return did_you_mean(wrong, legal, "--")
        if wrong is not None and message.startswith("the following arguments are required:"):
            hint = did_you_mean(wrong, legal, "--")
            return hint and f"; got {wrong}{hint}"
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        return did_you_mean(choice[1], [word.strip(" '") for word in choice[2].split(",")]) if choice else ""


def add_arguments(parser: argparse.ArgumentParser, cls: type[Options]) -> None:
    """Add a flag for each field of `cls`, under the headings of their groups; its own come before inherited ones."""
    kinds = field_types(cls)
    own = inspect.get_annotations(cls)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name not in own):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        keywords = _argument(field, kinds[field.name])
        spelled = () if is_positional(field) else field_flags(field)
        action = groups[heading].add_argument(*spelled, dest=field.name, **keywords)
        # Set afterwards: BooleanOptionalAction appends a default of its own in some versions of Python.
        action.help = _help_text(field)


def _argument(field: dataclasses.Field, kind: FieldType) -> dict[str, Any]:
    """The keywords of `add_argument`. A flag not given stores nothing: only the dataclass knows defaults."""
    many = {"nargs": "+"} if kind.many else {}
    if is_positional(field):
        return many | {"type": kind.item, "metavar": field_flags(field)[0]}
    common = {"default": argparse.SUPPRESS, "required": field.default is REQUIRED}
    if kind.item is bool:
        return common | {"action": argparse.BooleanOptionalAction if field.default else "store_true"}
    if field.metadata["choices"]:
        return common | many | {"choices": field.metadata["choices"]}
    return common | many | {"type": kind.item, "metavar": METAVARS[kind.item]}


def _help_text(field: dataclasses.Field) -> str:
    """The meaning, then unit and default in brackets, `%` escaped for argparse."""
    default = field.metadata["default_help"]
    # By identity: a default of 0 equals False, but it is a number that should be shown.
    if default is None and not any(field.default is silent for silent in (REQUIRED, None, False)):
        values = field.default if isinstance(field.default, tuple) else (field.default,)
        default = "on" if field.default is True else " ".join(map(str, values))
    notes = [
        field.metadata["unit"],
        "required" if field.default is REQUIRED else None,
        f"default: {default}" if default else None,
    ]
    brackets = "; ".join(note for note in notes if note)
    return (field.metadata["help"] + (f" ({brackets})" if brackets else "")).replace("%", "%%")


def build_parser(cls: type[Options], description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with a flag for each field of `cls`. Flags have to be written out: a shortened one may change its
    meaning when an option is added."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, cls)
    return parser


def from_arguments(cls: type[AnyOptions], namespace: argparse.Namespace) -> AnyOptions:
    """The checked options from what argparse found; raises as `cls` does."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in vars(namespace).items() if name in names})


def parse(
    cls: type[AnyOptions], description: str, argv: Sequence[str] | None = None, prog: str | None = None
) -> AnyOptions:
    """The options of a command line (`sys.argv` if None). Wrong use ends the process: one line on stderr, code 2."""
    parser = build_parser(cls, description, prog)
    namespace = parser.parse_args(argv)
    try:
        return from_arguments(cls, namespace)
    except ValueError as error:
        parser.error(str(error))


def to_dict(options: Options) -> dict[str, Any]:
    """The options as JSON holds them: paths as strings, tuples as lists. `cls(**to_dict(options))` gives them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {field.name: plain(getattr(options, field.name)) for field in dataclasses.fields(options)}


def first_word(kind: str, meanings: Mapping[str, str], prog: str, description: str, argv: Sequence[str]) -> str:
    """The word that chooses a command, the first one of `argv`. A wrong one, or none, ends the process as `parse` does.

    Args:
        kind: what the words are called, such as "command".
        meanings: each word, and what it does, for `--help`.
    """
    width = max(map(len, meanings)) + 2
    listing = "\n".join(f"  {word:<{width}}{meaning}" for word, meaning in meanings.items())
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} {kind.upper()} [options]",
        description=description,
        epilog=f"{kind}s ({kind.upper()} --help says more):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(kind, choices=meanings, metavar=kind.upper(), help=argparse.SUPPRESS)
    # Only this word is looked at here: the others, --help included, belong to the command.
    return getattr(parser.parse_args(argv[:1]), kind)
