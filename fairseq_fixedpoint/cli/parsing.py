"""How the commands parse their arguments, those of tokenizers and BPEs included."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

SPLITTERS = ("tokenizer", "bpe")
# By its name, as what needs fairseq stands above: it is imported where an option asks for it.
SPLITTERS_OF_FAIRSEQ = "fairseq_fixedpoint.plugin.splitters"
NEGATIVE = re.compile(
    r"-([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$|-(inf|infinity|nan)$", re.IGNORECASE
)


class Parser(argparse.ArgumentParser):
    """Takes every negative number for a value, `-5.9e-06` too; its subcommands' parsers as well.

    argparse's own pattern knows no exponents in many versions of Python, and takes such a number
    for an option that is not there. `-inf` and `-nan` pass, to be refused for what they are.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._negative_number_matcher = NEGATIVE


class CommandParser(Parser):
    """Of a subcommand, which has all options that stand behind its name: what it does not know
    ends it with its own usage, where argparse shows that of the whole program."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses, the options of the chosen tokenizer and BPE included, which --help lists, too."""
    # Knows nothing else, so that nothing ends it, and takes no other option for a beginning of its.
    finder = Parser(add_help=False, allow_abbrev=False)
    for name in SPLITTERS:
        finder.add_argument(f"--{name}", nargs="?")
    known, _ = finder.parse_known_args(argv)
    for name in SPLITTERS:
        chosen = getattr(known, name)
        if chosen is None:
            continue
        splitters = _splitters(parser, name)
        if chosen not in splitters.names(name):
            parser.error(
                f"argument --{name}: {chosen!r} is none of fairseq's: "
                f"{', '.join(splitters.names(name))}"
            )
        for each in _with_option(parser, f"--{name}"):
            splitters.add_options(each.add_argument_group(f"{name} {chosen}"), name, chosen)
    return parser.parse_args(argv)


def _splitters(parser: argparse.ArgumentParser, name: str) -> ModuleType:
    """fairseq's tokenizers and BPEs, or the end of the command where it cannot be imported."""
    try:
        return importlib.import_module(SPLITTERS_OF_FAIRSEQ)
    except ImportError as error:
        parser.error(
            f"argument --{name}: it needs fairseq, which cannot be imported here ({error}): "
            "install this package's extra fairseq"
        )


def _with_option(parser: argparse.ArgumentParser, option: str) -> Iterator[argparse.ArgumentParser]:
    """Those of a parser and its subcommands' that have an option."""
    if option in parser._option_string_actions:
        yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_option(each, option)
