"""A picture of confusion networks, before and after rescoring.

The sets stand from left to right, the words of a set in a column, the most probable at the top. A
bar behind each word is as long, of its column, as the word is probable. The words of the best text
have a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.word_labels import EMPTY_WORD
from fairseq_fixedpoint.rescoring.confusion import Network
from fairseq_fixedpoint.rescoring.lattice_plot import (
    AFTER,
    BEFORE,
    LETTER,
    ROW,
    draw_legend,
    label_of,
    new_picture,
    plain,
    require_picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETS = 40  # no more can be read in one picture
WORDS = 6  # of a set, the most probable
LEAST_DRAWN = 0.01  # of a word that is drawn, unless it is of the best text
GAP = 0.1  # between columns, inches
BAR = 0.72  # of a row's height

Column = list[tuple[str, float, bool]]  # words, posteriors, and which is of the best text


def plot_networks(
    before: tuple[Network, Sequence[str]],
    after: tuple[Network, Sequence[str]],
    path: FilePath,
    title: str = "",
) -> None:
    """Draws the first network above the second.

    Args:
        before, after: a network, and the best word of each of its sets, "" for none.
        path: where the picture goes; .png, .svg or .pdf.

    Raises:
        InputError: for another suffix, without matplotlib, or where a network has more than 40
            sets with more than one word to draw, or one that is certain.
    """
    require_picture(path)
    blocks = [(columns_of(*before), BEFORE), (columns_of(*after), AFTER)]
    widths = [sum(_width(column) + GAP for column in columns) for columns, _ in blocks]
    heights = [ROW * max(map(len, columns), default=0) for columns, _ in blocks]
    figure, axes = new_picture(max(widths), -sum(heights) - ROW, sum(heights) + ROW, title)
    top = 0.0
    for (columns, colour), height in zip(blocks, heights, strict=True):
        _draw(axes, columns, colour, top)
        top -= height + ROW
    draw_legend(
        figure,
        {
            "before": (list(filter(None, before[1])), BEFORE),
            "after": (list(filter(None, after[1])), AFTER),
        },
        note="numbers and bars: posteriors",
    )
    figure.savefig(path, dpi=160)


def columns_of(network: Network, best: Sequence[str]) -> list[Column]:
    """What is drawn of each set: not those that hardly ever have a word.

    Raises:
        InputError: if they are too many to be read.
    """
    columns = []
    for each, chosen in zip(network, best, strict=True):
        column = [
            (word, posterior, word == chosen)
            for number, (word, posterior) in enumerate(each.posteriors.items())
            if word == chosen or (number < WORDS and posterior >= LEAST_DRAWN)
        ]
        if [word for word, _, _ in column] != [""]:
            columns.append(column)
    if len(columns) > SETS:
        raise InputError(
            f"the confusion network has {len(columns)} sets of words, and more than {SETS} cannot "
            "be read in one picture: draw a shorter utterance."
        )
    return columns


def _width(column: Column) -> float:
    letters = max(len(label_of(word or EMPTY_WORD)) for word, _, _ in column)
    return LETTER * (letters + 6)  # with the posterior


def _draw(axes: Axes, columns: list[Column], colour: str, top: float) -> None:
    from matplotlib.patches import Rectangle

    left = 0.0
    for column in columns:
        width = _width(column)
        for number, (word, posterior, is_best) in enumerate(column):
            middle = top - ROW * (number + 0.5)
            corner, height = (left, middle - BAR * ROW / 2), BAR * ROW
            axes.add_patch(
                Rectangle(corner, posterior * width, height, fc=colour, alpha=0.35, ec="none")
            )
            if is_best:
                axes.add_patch(
                    Rectangle(corner, width, height, fc="none", ec=colour, lw=1.6, zorder=3)
                )
            axes.text(
                left + LETTER / 2,
                middle,
                plain(label_of(word or EMPTY_WORD)),
                va="center",
                fontsize=9,
                fontweight="bold" if is_best and word else "normal",
            )
            axes.text(
                left + width - LETTER / 2,
                middle,
                f"{posterior:.2f}",
                ha="right",
                va="center",
                fontsize=7,
                color="#404040",
            )
        left += width + GAP
