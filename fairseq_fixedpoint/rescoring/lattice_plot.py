"""A picture of a small lattice with its best path before and after rescoring.

States stand in layers from left to right. On its way through the layers an arc takes a place in
each, as a state would, and its word stands on one of them: so nothing covers a word. The best path
after rescoring is a straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as FilePath
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest
from fairseq_fixedpoint.rescoring.path_sums import layers
from fairseq_fixedpoint.rescoring.word_graph import WordGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARCS = 60  # no more can be read in one picture
SUFFIXES = (".pdf", ".png", ".svg")

# Told apart with all kinds of colour vision; where both paths go, the narrow lies on the wide.
BEFORE, AFTER, OTHER, OTHER_ON_BEFORE = "#e69f00", "#0072b2", "#8c8c8c", "#5c3f00"
WIDTH_BEFORE, WIDTH_AFTER, WIDTH_OTHER = 7.0, 2.2, 0.9  # points

# In inches.
RADIUS, ROW, STATE_COLUMN, LETTER = 0.07, 0.36, 0.5, 0.085
TITLE, LEGEND, LEAST_WIDTH = 0.2, 0.5, 6.0
LETTERS = 24  # of a word; the rest of a longer one is left out
STRAIGHTNESS = 1e4  # how much more a place on the straight line weighs than another

SWEEPS = 24  # over the layers; more change nothing in pictures of this size


def plot(before: WordGraph, after: Sequence[int], path: FilePath, title: str = "") -> None:
    """Draws the graph as it was, with its best path then and the path of what is best now.

    If the graph has more than 60 arcs, those of the best word sequences are drawn, and the title
    says so.

    Args:
        before: what is drawn.
        after: arcs of the path that is best now.
        path: where the picture goes; .png, .svg or .pdf.

    Raises:
        InputError: for another suffix, without matplotlib, if no path is complete, or the two
            paths alone are too long to be read.
    """
    require_picture(path)
    first = best_path(before)
    second = list(after)
    arcs, left_out = _chosen(before, [first.arcs, second])
    if left_out:
        title = f"{title} ({left_out})" if title else left_out
    layout = _Layout(before, arcs, second)

    figure, axes = new_picture(layout.width, layout.low, layout.height, title)
    _draw_arcs(axes, before, layout, set(first.arcs), set(second))
    _draw_states(axes, before, layout)
    words = tuple(word for arc in second if (word := before.words[arc]))
    draw_legend(figure, {"before": (first.words, BEFORE), "after": (words, AFTER)})
    figure.savefig(path, dpi=160)


def require_picture(path: FilePath) -> None:
    """Refuses a picture that could not be made.

    Raises:
        InputError: for a suffix of no picture, or without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "a picture needs matplotlib, which is not installed: install this package's extra demo."
        ) from None


def new_picture(width: float, low: float, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty picture whose units are inches, with room for what is `width` wide from 0 on and
    `height` high from `low` on, for the title above and a legend below it.
    """
    from matplotlib.figure import Figure

    whole = height + 2 * ROW + TITLE + LEGEND
    figure = Figure(figsize=(max(width + 2 * STATE_COLUMN, LEAST_WIDTH), whole))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    margin = (figure.get_figwidth() - width) / 2
    axes.set_xlim(-margin, width + margin)
    axes.set_ylim(low - ROW - LEGEND, low + height + ROW + TITLE)
    if title:
        figure.suptitle(plain(title), y=1 - 0.12 / whole, va="top", fontsize=10)
    return figure, axes


def check_paths(graph: WordGraph, paths: Sequence[Sequence[int]]) -> set[int]:
    """The arcs of paths that are drawn in any case.

    Raises:
        InputError: if they are too many to be read.
    """
    arcs = set().union(*paths)
    if len(arcs) > ARCS < len(graph.words):
        raise InputError(
            f"the best paths have {len(arcs)} arcs, and more than {ARCS} cannot be read in one "
            "picture: draw a shorter utterance."
        )
    return arcs


def _chosen(graph: WordGraph, paths: Sequence[list[int]]) -> tuple[list[int], str]:
    """The arcs to draw, those of `paths` among them, and what to say of those left out."""
    total = len(graph.words)
    if total <= ARCS:
        return list(range(total)), ""
    arcs = check_paths(graph, paths)
    drawn = 0
    for path in nbest(graph, ARCS):
        if len(arcs.union(path.arcs)) > ARCS:
            break
        arcs.update(path.arcs)
        drawn += 1
    of_best = f", those of the {drawn} best word sequences" if drawn > 1 else ""
    return sorted(arcs), f"{len(arcs)} of {total:,} arcs{of_best}"


@dataclass(eq=False)
class _Place:
    """Where a state stands, or an arc passes a layer; in inches."""

    column: int
    y: float = 0.0
    weight: float = 1.0  # in the choice of y


class _Layout:
    """Places of states and arcs in columns: of states, and between them of arcs and their words.

    Attributes:
        x: of each column.
        states: the place of each state drawn.
        ways: for each arc drawn, its places in all columns from its source to its target.
        width, height, low: of the picture, and its lowest place.
    """

    def __init__(self, graph: WordGraph, arcs: Sequence[int], straight: Sequence[int]):
        layer = _layers_of(graph, arcs)
        self.states = {state: _Place(2 * depth) for state, depth in layer.items()}
        self.ways: dict[int, list[_Place]] = {}
        for arc in arcs:
            begin, end = self.states[graph.source[arc]], self.states[graph.target[arc]]
            between = [_Place(column) for column in range(begin.column + 1, end.column)]
            self.ways[arc] = [begin, *between, end]
        columns: list[list[_Place]] = [[] for _ in range(2 * max(layer.values()) + 1)]
        for place in [*self.states.values(), *(p for w in self.ways.values() for p in w[1:-1])]:
            columns[place.column].append(place)
        for arc in straight:
            for place in self.ways[arc]:
                place.weight = STRAIGHTNESS
        _arrange(columns, list(self.ways.values()))

        letters = [0] * len(columns)
        for arc, way in self.ways.items():
            column = way[_middle(way)].column
            letters[column] = max(letters[column], len(label_of(graph.words[arc])))
        widths = [
            STATE_COLUMN if column % 2 == 0 else 0.3 + LETTER * count
            for column, count in enumerate(letters)
        ]
        self.x = np.cumsum(widths) - np.array(widths) / 2 - STATE_COLUMN / 2
        heights = [place.y for column in columns for place in column]
        self.width, self.low = float(self.x[-1]), min(heights)
        self.height = max(heights) - self.low

    def label(self, arc: int) -> tuple[float, float]:
        """Where the word of an arc stands."""
        place = self.ways[arc][_middle(self.ways[arc])]
        return self.x[place.column], place.y


def _middle(way: list[_Place]) -> int:
    """The place of an arc's word: the middle column of those that have no states."""
    return (len(way) - 1) // 2 // 2 * 2 + 1 if len(way) > 3 else 1


def _layers_of(graph: WordGraph, arcs: Sequence[int]) -> dict[int, int]:
    """The layer of each state in a graph of these arcs alone; the start is there without any."""
    states, place = np.unique(
        np.concatenate([[0], graph.source[arcs], graph.target[arcs]]).astype(np.intp),
        return_inverse=True,
    )
    source, target = place[1:].reshape(2, -1)
    layer = layers(source, target, len(states))
    return dict(zip(states.tolist(), layer.tolist(), strict=True))


def _arrange(columns: list[list[_Place]], ways: list[list[_Place]]) -> None:
    """Finds an order in each column with few crossings, then heights that make arcs straight."""
    left: dict[_Place, list[_Place]] = {}
    right: dict[_Place, list[_Place]] = {}
    for way in ways:
        for one, other in pairwise(way):
            right.setdefault(one, []).append(other)
            left.setdefault(other, []).append(one)
    for column in columns:
        _stack(column, [ROW * number for number in range(len(column))])

    fewest, best = len(ways) ** 3, columns
    for sweep in range(SWEEPS):
        rightwards = sweep % 2 == 0
        for column in columns if rightwards else reversed(columns):
            beside = left if rightwards else right
            mean = {place: _mean(beside.get(place, [place])) for place in column}
            column.sort(key=mean.__getitem__)
            _stack(column, [ROW * number for number in range(len(column))])
        crossings = _crossings(columns, right)
        if crossings < fewest:
            fewest, best = crossings, [list(column) for column in columns]

    for column in best:
        _stack(column, [ROW * number for number in range(len(column))])
    for sweep in range(SWEEPS):
        for column in best if sweep % 2 == 0 else reversed(best):
            _stack(
                column,
                [
                    0.0
                    if place.weight > 1
                    else _mean([*left.get(place, []), *right.get(place, [])] or [place])
                    for place in column
                ],
            )


def _mean(places: list[_Place]) -> float:
    return sum(place.y for place in places) / len(places)


def _crossings(columns: list[list[_Place]], right: dict[_Place, list[_Place]]) -> int:
    """How many pairs of arcs change their order between two columns."""
    total = 0
    for column in columns:
        steps = np.array(
            [(place.y, other.y) for place in column for other in right.get(place, [])]
        ).reshape(-1, 2)
        differences = steps[:, None] - steps
        total += int((differences[..., 0] * differences[..., 1] < 0).sum()) // 2
    return total


def _stack(column: list[_Place], heights: list[float]) -> None:
    """Sets heights as near to those wanted as the order and a row's distance let them be.

    The least squares that keep an order, by pooling neighbours that violate it.
    """
    pools: list[tuple[float, float, int]] = []  # mean height without the rows, weight, places
    for number, (place, height) in enumerate(zip(column, heights, strict=True)):
        pool = (height - ROW * number, place.weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, weight, count = pools.pop()
            both = weight + pool[1]
            pool = ((mean * weight + pool[0] * pool[1]) / both, both, count + pool[2])
        pools.append(pool)
    means = [mean for mean, _, count in pools for _ in range(count)]
    for number, (place, mean) in enumerate(zip(column, means, strict=True)):
        place.y = mean + ROW * number


def _draw_arcs(
    axes: Axes, graph: WordGraph, layout: _Layout, before: set[int], after: set[int]
) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    for arc, way in layout.ways.items():
        points = [(layout.x[place.column], place.y) for place in way]
        points[0] = (points[0][0] + _radius(graph, graph.source[arc]), points[0][1])
        points[-1] = (points[-1][0] - _radius(graph, graph.target[arc]), points[-1][1])
        curve = [points[0]]
        for (x, y), (next_x, next_y) in pairwise(points):
            curve += [((x + next_x) / 2, y), ((x + next_x) / 2, next_y), (next_x, next_y)]
        shape = Path(curve, [Path.MOVETO, *[Path.CURVE4] * (len(curve) - 1)])
        if arc in before:
            axes.add_patch(
                FancyArrowPatch(path=shape, arrowstyle="-", color=BEFORE, lw=WIDTH_BEFORE, zorder=1)
            )
        axes.add_patch(
            FancyArrowPatch(
                path=shape,
                arrowstyle="-|>",
                mutation_scale=9,
                color=AFTER if arc in after else OTHER_ON_BEFORE if arc in before else OTHER,
                lw=WIDTH_AFTER if arc in after else WIDTH_OTHER,
                ls="-" if graph.words[arc] else (0, (3, 2)),
                zorder=3 if arc in after else 2,
            )
        )
        if graph.words[arc]:
            axes.text(
                *layout.label(arc),
                plain(label_of(graph.words[arc])),
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if arc in before | after else "normal",
                color="black" if arc in before | after else "#404040",
                bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"},
                zorder=4,
            )


def _draw_states(axes: Axes, graph: WordGraph, layout: _Layout) -> None:
    from matplotlib.patches import Circle

    for state, place in layout.states.items():
        centre = (layout.x[place.column], place.y)
        if graph.end[state] > -np.inf:
            outer = _radius(graph, state)
            axes.add_patch(Circle(centre, outer, fc="white", ec="black", lw=0.9, zorder=5))
        colour = "black" if state == 0 else "white"
        axes.add_patch(Circle(centre, RADIUS, fc=colour, ec="black", lw=0.9, zorder=6))


def _radius(graph: WordGraph, state: int) -> float:
    """A state where a path may end has a second circle."""
    return 1.6 * RADIUS if graph.end[state] > -np.inf else RADIUS


def draw_legend(
    figure: Figure, paths: dict[str, tuple[Sequence[str], str]], note: str = ""
) -> None:
    """The words of what is best, with their colours, by `before` and `after`; and a note beside."""
    from matplotlib.lines import Line2D

    letters = int(figure.get_figwidth() / LETTER) - 20
    widths = {"before": WIDTH_BEFORE, "after": WIDTH_AFTER}
    figure.legend(
        [Line2D([], [], color=colour, lw=widths[when]) for when, (_, colour) in paths.items()],
        [
            plain(f"best {when}: {shorten(' '.join(words), letters, placeholder=' …')}")
            for when, (words, _) in paths.items()
        ],
        loc="lower left",
        frameon=False,
        fontsize=9,
    )
    figure.text(0.99, 0.02, note, ha="right", va="bottom", fontsize=8, color="#404040")


def label_of(word: str) -> str:
    """A word, cut if it is long."""
    return word if len(word) <= LETTERS else word[: LETTERS - 1] + "…"


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
