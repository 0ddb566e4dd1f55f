"""The languages of the translation example: English that Python carries, and one made from it.

Imports the standard library alone.
"""

from __future__ import annotations

import ast
import random
import re
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from documentation import MARKUP, NOT_PROSE, paragraphs

MEANINGS = 3  # English words that one foreign word stands for
BAND = 4  # foreign words that share out the English words of like frequency
PARTICLES = 0.3  # of all English types: their translation stands behind the next word's
CHUNK = 20  # sentences that stay together when the text is split

# A word, a name with its dots and underscores, a number, or one mark.
TOKEN = re.compile(r"\w+(?:[.'\u2019-]\w+)*|\S")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TESTS = {"test", "tests", "idle_test"}


def english() -> list[list[str]]:
    """Tokens of the sentences in pydoc's topics and in the docstrings of the standard library.

    Lower case, each sentence once, in an order that depends on the version of Python alone.
    """
    text = [sentence for paragraph in paragraphs() for sentence in sentences(paragraph)]
    for docstring in _docstrings():
        for paragraph in re.split(r"\n\s*\n", docstring):
            if not NOT_PROSE.search(paragraph):
                text += sentences(" ".join(paragraph.split()))
    return [list(sentence) for sentence in dict.fromkeys(map(tuple, text)) if _is_prose(sentence)]


def sentences(paragraph: str) -> list[list[str]]:
    """The tokens of each sentence of English."""
    text = MARKUP.sub("", paragraph)
    return [TOKEN.findall(sentence.lower()) for sentence in SENTENCE_END.split(text)]


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        for path in [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]:
            if path.exists() and not TESTS & set(path.relative_to(root).parts):
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, DOCUMENTED):
                        yield ast.get_docstring(node) or ""


def _is_prose(sentence: Sequence[str]) -> bool:
    """Ends like a sentence, and has more words than marks, names and numbers."""
    words = sum(token.isalpha() for token in sentence)
    return len(sentence) > 3 and sentence[-1] in ".:!?" and words > 0.7 * len(sentence)


def split(
    text: Sequence[list[str]], sizes: Sequence[int], seed: int
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Parts of a text, and what is left of it, without neighbours on different sides.

    Args:
        text: sentences.
        sizes: of the parts, in sentences; rounded up to whole chunks of neighbours.
        seed: of the choice of chunks.

    Returns:
        A part for each size, and the rest; a part is smaller where the text ends first.
    """
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    random.Random(seed).shuffle(chunks)
    parts = []
    for size in sizes:
        count = -(-size // CHUNK)
        parts.append([sentence for chunk in chunks[:count] for sentence in chunk])
        del chunks[:count]
    return parts, [sentence for chunk in chunks for sentence in chunk]


@dataclass(frozen=True)
class Foreign:
    """A language whose words each stand for several English ones, in another order.

    Attributes:
        lexicon: the foreign word by English word.
        particles: English words whose translation stands behind that of the next word.
    """

    lexicon: dict[str, str]
    particles: Collection[str]

    @classmethod
    def made_from(cls, types: Sequence[str], seed: int) -> Foreign:
        """Shares foreign words among English words of like frequency.

        Args:
            types: English words, the most frequent first.
            seed: of all choices.
        """
        choice = random.Random(seed)
        lexicon = {}
        for start in range(0, len(types), MEANINGS * BAND):
            band = list(types[start : start + MEANINGS * BAND])
            choice.shuffle(band)
            for position, word in enumerate(band, start):
                lexicon[word] = f"w{position // MEANINGS}"
        return cls(lexicon, {word for word in types if choice.random() < PARTICLES})

    def translated(self, sentence: Iterable[str]) -> list[str]:
        """The foreign sentence.

        Raises:
            KeyError: for a word that the lexicon lacks.
        """
        translation, held = [], []
        for word in sentence:
            if word in self.particles and not held:
                held = [self.lexicon[word]]
            else:
                translation += [self.lexicon[word], *held]
                held = []
        return translation + held
