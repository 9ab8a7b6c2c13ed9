"""Options that are given without a flag and may be several."""

import re
from dataclasses import dataclass

import pytest

from learnable_memory.options import NOT_EMPTY, Options, at_least, option, parse, to_dict


@dataclass(frozen=True, kw_only=True)
class Sum(Options):
    """Numbers without a flag, and names with one."""

    numbers: tuple[int, ...] = option(help="what to add", flags=("NUMBER",), legal=at_least(0))
    names: tuple[str, ...] | None = option(None, "what they are called", legal=NOT_EMPTY)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["3"], Sum(numbers=(3,))),
        (["3", "1", "2"], Sum(numbers=(3, 1, 2))),
        (["3", "1", "--names", "a", "b"], Sum(numbers=(3, 1), names=("a", "b"))),
        (["--names", "a", "b", "--", "3", "1"], Sum(numbers=(3, 1), names=("a", "b"))),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_several_values_without_a_flag(argv, options):
    assert parse(Sum, "Add.", argv) == options
    assert Sum(**to_dict(options)) == options


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the following arguments are required: NUMBER"),
        (["--names", "a", "3"], "the following arguments are required: NUMBER"),
        (["3", "-1"], "NUMBER is -1, but it has to be 0 or more."),
        (["3", "--numbers", "4"], "unrecognized arguments: --numbers 4 (did you mean --names?)"),
        (["3", "x"], "argument NUMBER: invalid int value: 'x'"),
    ],
    ids=str,
)
def test_wrong_values_without_a_flag(capsys, argv, error):
    with pytest.raises(SystemExit) as ended:
        parse(Sum, "Add.", argv, prog="sum")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"sum: error: {error} (--help lists the options)\n"


def test_each_of_several_values_is_checked():
    with pytest.raises(ValueError, match=re.escape("NUMBER is -1, but it has to be 0 or more.")):
        Sum(numbers=(3, -1))
    with pytest.raises(ValueError, match=re.escape("NUMBER is empty, but it needs at least one value.")):
        Sum(numbers=())


def test_help_shows_that_there_may_be_several(capsys):
    with pytest.raises(SystemExit):
        parse(Sum, "Add.", ["--help"], prog="sum")
    printed = capsys.readouterr().out
    assert "NUMBER [NUMBER ...]" in printed.partition("\n\n")[0]
    assert re.search(r"\n  NUMBER +what to add \(required\)\n", printed)
