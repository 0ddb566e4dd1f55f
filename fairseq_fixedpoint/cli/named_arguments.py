"""Arguments that begin with a name: `NAME=PATH`, `NAME=CHOICE`, `NAME=NUMBER`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.combination import CHARACTERS, WORDS

NAMED_PATH = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)=(.+)")


def named_path(argument: str | Path) -> tuple[str | None, str]:
    """`NAME=PATH` or a path."""
    match = NAMED_PATH.fullmatch(str(argument))
    if match is None or Path(argument).exists():
        return None, str(argument)
    return match[1], match[2]


def check_name(argument: str) -> None:
    """Refuses a name that none can have, before the path of what is there.

    Raises:
        InputError: for such a name.
    """
    name, _, path = argument.partition("=")
    is_right = NAMED_PATH.fullmatch(argument) or Path(argument).exists()
    if path and Path(path).exists() and not is_right:
        raise InputError(
            f"{argument}: the name {name!r} must be a letter, and then letters, digits, dots and "
            "hyphens. (Moses takes an underscore for the mark of a sparse feature.)"
        )


def named_choices(
    option: str, arguments: Sequence[str], choices: Collection[str], models: Collection[str]
) -> dict[str, str]:
    """What an option `NAME=CHOICE` says, by the name of the model."""
    choice_of: dict[str, str] = {}
    for argument in arguments:
        name, _, choice = argument.rpartition("=")
        if choice not in choices or not name:
            raise InputError(
                f"{option} takes NAME and one of {', '.join(choices)}, as in {option} "
                f"NAME={next(iter(choices))}, not {argument!r}."
            )
        if name not in models:
            raise InputError(
                f"{option} {argument}: no model that it is for has the name {name}, but "
                f"{', '.join(models) or 'there is none'}."
            )
        _require_first(option, name, choice_of)
        choice_of[name] = choice
    return choice_of


def parsed_weights(args: argparse.Namespace) -> dict[str, float]:
    """What `--weight NAME=W` and the penalties say, by the name of the score."""
    weights: dict[str, float] = {}
    for argument in args.weight:
        name, _, value = argument.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--weight takes NAME=NUMBER, not {argument!r}.")
        _require_first("--weight", name, weights)
        weights[name] = weight
    require_one(weights, "--word-penalty", args.word_penalty, {WORDS})
    if args.word_penalty is not None:
        weights[WORDS] = args.word_penalty
    character_penalty = getattr(args, "character_penalty", None)  # lattices have none
    if isinstance(character_penalty, float):  # else it is to be found, or not given
        require_one(weights, "--character-penalty", character_penalty, {CHARACTERS})
        weights[CHARACTERS] = character_penalty
    return weights


def _require_first(option: str, name: str, given: Mapping[str, object]) -> None:
    """Refuses what an option would say of one name twice."""
    if name in given:
        raise InputError(f"{option} is given twice for {name}: give it once.")


def require_one(
    weights: Mapping[str, float], option: str, value: object, names: Collection[str]
) -> None:
    """Refuses an option of its own for a score that `--weight` has given a weight, too."""
    both = sorted(name for name in names if name in weights)
    if value is not None and both:
        raise InputError(f"{option} and --weight {both[0]}=W are the same: give one.")
