"""Options for what was said before."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import read_previous_texts
from fairseq_fixedpoint.rescoring.nbest_rescoring import PreviousTexts
from fairseq_fixedpoint.rescoring.scorer import Previous
from fairseq_fixedpoint.rescoring.words import WordRule


def add_context_option(parser: argparse._ActionsContainer, before: str) -> None:
    """What models see of `before`, which is said before."""
    parser.add_argument(
        "--previous-context",
        nargs="?",
        type=int,
        default=0,
        metavar="N",
        help=f"let models see the last N tokens of {before} (without N: as many as the model can "
        "use)",
    )


def add_previous_texts_option(parser: argparse._ActionsContainer) -> None:
    """Where what was said before an utterance is, if that is not the utterances before it."""
    parser.add_argument(
        "--previous-texts",
        type=Path,
        metavar="FILE",
        help="what --previous-context lets models see, in place of the utterances before: "
        "`id<TAB>text`, a line for each text before utterance id, in order",
    )


def previous_texts(
    args: argparse.Namespace, context: float, rule: WordRule
) -> dict[str, Previous] | None:
    """What `--previous-texts` has before each utterance, by its id; None without the option.

    Args:
        context: how many tokens of it some model looks at.

    Raises:
        FormatError: for a malformed file.
        InputError: if no model looks at it.
    """
    if args.previous_texts is None:
        return None
    if not context:
        raise InputError(
            "--previous-texts needs --previous-context, which lets models see what was said before."
        )
    before = {}
    for utterance, texts in read_previous_texts(args.previous_texts).items():
        window = PreviousTexts(context)
        for text in texts:
            window.add(text, len(rule.words(text)))
        before[utterance] = window.texts
    return before
