"""The text of the speech example: one spelling for language model, references and hypotheses.

WikiText-2 writes "The lobster 's claws are red @-@ tipped ." and the recogniser "the lobster's
claws are red tipped". :func:`normalise` takes either to the second form, so that a language model
trained on the one scores the other, and errors are counted between words of one spelling. Only
the standard library is imported.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

UNKNOWN = "<unk>"
NUMBER = "<number>"

# "20 @,@ 000" and "2 @.@ 5" are each one number.
_NUMBER_JOIN = re.compile(r" @([.,])@ ")
# "the lobster 's", "didn 't", "O 'Brien", and also "<unk> 's", which is then one unknown word.
_CLITIC = re.compile(r"(?<=[\w>]) '(?=\w)")
# "red @-@ tipped", "African-American", "and/or".
_WORD_BREAK = re.compile(r"@-@|[-\N{EN DASH}\N{EM DASH}/]")
_INITIALS = re.compile(r"(?:[a-z]\.)+")
_SENTENCE_END = re.compile(r'(?<= [.?!]) (?:["\')] )*')
_HEADING = re.compile(r" = .* = ")
_TITLE = re.compile(r" = (?!= ).* = ")  # " = Lobster = ", and not " = = Life cycle = = "


def normalise(text: str) -> str:
    """Write text as the recogniser would have heard it.

    Letters are lower-cased and lose their accents, punctuation goes, clitics and possessives are
    joined to their word, compounds are parted at the hyphen and initials spelled ("U.S." is
    "u s"). A word with a digit becomes ``<number>``, as the recogniser never writes one, and a
    word with other characters than a-z and apostrophes ``<unk>``.

    Args:
        text: WikiText-2's tokens, or words of the recogniser.

    Returns:
        The words, separated by single spaces; may be empty.
    """
    text = unicodedata.normalize(
        "NFKD", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = _NUMBER_JOIN.sub(r"\1", text)
    text = _CLITIC.sub("'", text)
    text = _WORD_BREAK.sub(" ", text).replace("&", "and")
    return " ".join(word for token in text.split() for word in _words(token))


def _words(token: str) -> Iterator[str]:
    """The words of a token without white space: none for punctuation, several for initials."""
    if UNKNOWN in token:
        yield UNKNOWN
    elif any(character.isdigit() for character in token):
        yield NUMBER
    elif _INITIALS.fullmatch(token):
        yield from token.replace(".", " ").split()
    else:
        letters = "".join(
            character for character in token if character.isalpha() or character == "'"
        )
        word = letters.strip("'")
        if word:
            yield word if re.fullmatch("[a-z']+", word) else UNKNOWN


def articles(text: str) -> Iterator[list[str]]:
    """The normalised sentences of each article of WikiText-2, in order.

    Headings and empty sentences are left out. What is before the first title comes first, and may
    be nothing.

    Args:
        text: a split of the corpus: paragraphs and headings, one a line.
    """
    article: list[str] = []
    for line in text.splitlines():
        if _TITLE.fullmatch(line):
            yield article
            article = []
        elif not _HEADING.fullmatch(line):
            article += filter(None, map(normalise, _SENTENCE_END.split(line)))
    yield article


def previous_sentences(
    chosen: Iterable[str], articles: Iterable[Sequence[str]]
) -> Iterator[Sequence[str]]:
    """What is before each of the chosen sentences in its article, or in the first that has it."""
    before: dict[str, tuple[Sequence[str], int]] = {}
    for article in articles:
        for number, sentence in enumerate(article):
            before.setdefault(sentence, (article, number))
    for sentence in chosen:
        article, number = before[sentence]
        yield article[:number]


def limit_vocabulary(train: Iterable[str], least: int) -> list[str]:
    """The sentences with every word that is seen fewer than ``least`` times as ``<unk>``."""
    train = list(train)
    counts = Counter(word for sentence in train for word in sentence.split())
    return [
        " ".join(word if counts[word] >= least else UNKNOWN for word in sentence.split())
        for sentence in train
    ]


def choose(
    candidates: Iterable[str], dictionary: Collection[str], count: int, seed: int
) -> list[str]:
    """Sentences to speak: 5 to 20 words, all of which the recogniser can hear.

    Args:
        candidates: normalised sentences.
        dictionary: the words that the recogniser knows.
        count: how many to choose.
        seed: of the choice.

    Returns:
        Different sentences in the order of the text; fewer than ``count`` where it has no more.
    """
    able = [
        sentence
        for sentence in dict.fromkeys(candidates)
        if 5 <= len(sentence.split()) <= 20 and all(word in dictionary for word in sentence.split())
    ]
    chosen = random.Random(seed).sample(range(len(able)), min(count, len(able)))
    return [able[index] for index in sorted(chosen)]


def clean_hypothesis(words: str) -> str:
    """What the recogniser heard, without its fillers (``<sil>``, ``++NOISE++``, ``[NOISE]``) and
    marks of pronunciations (``the(2)``), in the spelling of :func:`normalise`."""
    spoken = (word for word in words.split() if not word.startswith(("<", "[", "++")))
    return normalise(" ".join(re.sub(r"\(\d+\)$", "", word) for word in spoken))


def respelled(line: str) -> str:
    """A line of the recogniser's lattice, HTK SLF, with its word in the spelling of
    :func:`normalise`. Fillers and ``!NULL`` stay, and what would be several words."""

    def spelled(match: re.Match[str]) -> str:
        words = clean_hypothesis(match[0]).split()
        return words[0] if len(words) == 1 else match[0]

    return re.sub(r"(?<=\tW=)[^!\s]\S*", spelled, line)


def distinct(candidates: Iterable[tuple[str, float]], limit: int) -> dict[str, tuple[float, str]]:
    """The best way to each text among a recogniser's candidates, as far as ``limit`` texts.

    Args:
        candidates: words as the recogniser writes them and their score, higher is better, the
            best about first; read no further than the limit needs.
        limit: of different texts.

    Returns:
        The score and the recogniser's own words by cleaned text, best first.
    """
    best: dict[str, tuple[float, str]] = {}
    for words, score in candidates:
        text = clean_hypothesis(words)
        if text not in best or score > best[text][0]:
            best[text] = score, words
        if len(best) == limit:
            break
    return dict(sorted(best.items(), key=lambda item: item[1][0], reverse=True))
