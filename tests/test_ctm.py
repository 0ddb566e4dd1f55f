"""When words are said: times of lattices in each format, and CTM."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import lattice_format, read_lattices
from fairseq_fixedpoint.formats.ctm import TimedWord, check_ctm_id, write_ctm
from fairseq_fixedpoint.formats.lattice_times import node_times, times_are_of_begins
from fairseq_fixedpoint.rescoring.lattice_search import best_path, posteriors
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from fairseq_fixedpoint.rescoring.word_times import word_spans
from tests.test_lattice_formats import POCKETSPHINX


def read(text: str, path):
    path.write_text(text)
    [lattice] = read_lattices(path, lattice_format(path))
    return lattice


def graph_of(lattice) -> WordGraph:
    return WordGraph.of_words(
        lattice.source,
        lattice.target,
        ["" if word.startswith("!") else word for word in lattice.words],
        lattice.scores["acoustic"],
        np.where(lattice.final, 0.0, -np.inf),
    )


def spans_of(lattice, **options) -> list[tuple[str, float, float]]:
    """The words of the best path, with their times."""
    graph = graph_of(lattice)
    best = best_path(graph).arcs
    shares, node = posteriors(graph), np.arange(len(graph.end))
    spans = word_spans(lattice, graph, node, shares, best, **options)
    return [(graph.words[arc], *spans[arc].tolist()) for arc in best if graph.words[arc]]


ON_LINKS = """\
N=4 L=4
I=0 t=0
I=1 t=0.5
I=2 t=0.75
I=3 t=2
J=0 S=0 E=1 W=a a=-1
J=1 S=0 E=2 W=b a=-9
J=2 S=1 E=2 W=!NULL a=-1
J=3 S=2 E=3 W=c a=-1
"""
ON_NODES = """\
N=4 L=3
I=0 t=0 W=!NULL
I=1 t=0.5 W=a
I=2 t=0.75 W=!NULL
I=3 t=2 W=c
J=0 S=0 E=1 a=-1
J=1 S=1 E=2 a=-1
J=2 S=2 E=3 a=-1
"""


@pytest.mark.parametrize("text", [ON_LINKS, ON_NODES])
def test_a_word_of_htk_ends_at_the_time_of_its_node(text, tmp_path):
    lattice = read(text, tmp_path / "a.lat")
    assert not times_are_of_begins(lattice)
    assert spans_of(lattice) == [("a", 0.0, 0.5), ("c", 0.75, 2.0)]


def test_a_word_of_pocketsphinx_begins_at_the_time_of_its_node(tmp_path):
    lattice = read(POCKETSPHINX, tmp_path / "a.lat")
    assert times_are_of_begins(lattice)
    (first, begin, middle), (second, begin_again, end) = spans_of(lattice)
    assert first in {"read", "red"} and second in {"it", "it's"}
    assert (begin, middle, begin_again) == (0.21, 0.44, 0.44)
    assert end in {0.65, 0.69, 0.80}  # where silence or the end begins


def test_a_word_of_the_best_path_ends_where_its_next_one_begins(tmp_path):
    text = (
        "N=5 L=5\nI=0 t=0 W=!SENT_START\nI=1 t=1 W=a\nI=2 t=2 W=b\nI=3 t=3 W=c\nI=4 t=4 W=!NULL\n"
        "J=0 S=0 E=1 a=0\nJ=1 S=1 E=2 a=-1\nJ=2 S=1 E=3 a=-2\nJ=3 S=2 E=4 a=0\nJ=4 S=3 E=4 a=2\n"
    )
    lattice = read(text, tmp_path / "a.lat")
    assert spans_of(lattice) == [("a", 1.0, 3.0), ("c", 3.0, 4.0)]


KALDI = """\
u
0 1 a 0,1,4_4_5
0 1 b 0,2,4_6_6
1 2 <eps> 0,1,
1 2 c 0,1,
2 3 d 0,1,7
3 0,0,8_8

"""


def test_an_arc_of_kaldi_lasts_as_many_frames_as_it_has_transition_ids(tmp_path):
    lattice = read(KALDI, tmp_path / "lattice")
    assert node_times(lattice).tolist() == pytest.approx([0, 0.03, 0.03, 0.04])
    assert node_times(lattice, 0.5).tolist() == [0, 1.5, 1.5, 2.0]
    assert spans_of(lattice, frame_shift=0.5)[0] == ("a", 0.0, 1.5)


@pytest.mark.parametrize(
    "text",
    [
        KALDI.replace("4_6_6", "4_6"),  # another number of frames to the same state
        KALDI.replace("4_4_5", "").replace("4_6_6", "").replace(",7", ",").replace("8_8", ""),
    ],
)
def test_a_lattice_of_kaldi_without_frames_has_no_times(text, tmp_path):
    lattice = read(text, tmp_path / "lattice")
    assert node_times(lattice) is None
    graph = graph_of(lattice)
    nodes = np.arange(len(graph.end))
    assert word_spans(lattice, graph, nodes, posteriors(graph), best_path(graph).arcs) is None


@given(st.lists(st.floats(0, 50), max_size=8).map(sorted))
def test_lines_of_a_ctm_begin_where_the_ones_before_end(times):
    timed = [TimedWord("w", *span, 0.5) for span in pairwise(times)]
    file = io.StringIO()
    write_ctm("u", timed, file)
    lines = [line.split(" ") for line in file.getvalue().splitlines()]
    assert len(lines) == len(timed)
    for (_, begin, end, _), columns in zip(timed, lines, strict=True):
        assert columns[:2] == ["u", "1"] and columns[4:] == ["w", "0.5000"]
        assert float(columns[2]) == pytest.approx(begin, abs=6e-4)
        assert float(columns[3]) == pytest.approx(end - begin, abs=1.1e-3)
    for (_, _, start, duration, *_), (_, _, following, *_) in pairwise(lines):
        assert float(start) + float(duration) == pytest.approx(float(following), abs=1e-9)


@pytest.mark.parametrize("utterance", ["", "a b", "a\tb", ";;a"])
def test_an_id_that_a_ctm_cannot_hold(utterance):
    with pytest.raises(InputError, match="a CTM cannot hold the id"):
        check_ctm_id(utterance)
    check_ctm_id("a;;b")
