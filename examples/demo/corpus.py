"""Make a small corpus of plain text, or else of the documentation that Python carries.

Writes train.tokens, valid.tokens and test.tokens: lower-case words and punctuation separated by
spaces, one sentence a line. What comes of the documentation depends on the version of Python and on
nothing else.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import documentation  # beside this file
import regex  # sacrebleu needs it, too; re takes marks of vowels for ends of words
import texts

from fairseq_fixedpoint.cli.run import quantity, run
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write

PROGRAM = "demo"
# Consecutive paragraphs, or sentences, stay together, so that a stream of text reads as one.
PARAGRAPHS_A_CHUNK = 8
CHUNKS_OF_SENTENCES = 100
CHUNKS_A_ROUND = 10  # of which one goes to validation and one to the test
LONGEST_SENTENCE = 500  # tokens; a text without marks is cut into pieces of as many
LEAST_TOKENS = CHUNKS_A_ROUND * LONGEST_SENTENCE  # so that no part is empty

# Without spaces between words a character is one.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# With the marks of vowels and the joiners that stand inside words.
IN_WORD = rf"[[\w\p{{M}}\u200C\u200D]--[{UNSPACED}]]"
# A word, a name with its dots and underscores, a number, or one mark.
TOKEN = regex.compile(
    rf"<unk>|[{UNSPACED}]\p{{M}}*|{IN_WORD}+(?:[.'\u2019-]{IN_WORD}+)*|\S", regex.VERSION1
)
SENTENCE_END = regex.compile(
    r"(?<=[.!?\u2026\u0964\u061F\u06D4][\"\u201D\u00BB]*)\s+(?=[^\w\s]?[\p{Lu}\p{Lt}\p{Lo}])"
    r"|(?<=[\u3002\uFF01\uFF1F])(?=[^\u3002\uFF01\uFF1F\p{Pf}\p{Pe}])\s*"
)

Sentence = list[str]  # of tokens


def sentences(paragraph: str) -> list[Sentence]:
    """The tokens of each sentence."""
    parts = []
    for sentence in SENTENCE_END.split(paragraph):
        tokens = TOKEN.findall(sentence.lower())
        for begin in range(0, len(tokens), LONGEST_SENTENCE):
            parts.append(tokens[begin : begin + LONGEST_SENTENCE])
    return parts


def of_documentation() -> dict[str, list[Sentence]]:
    """Python's, in three parts."""
    return split(list(map(sentences, documentation.paragraphs())), PARAGRAPHS_A_CHUNK)


def of_texts(paths: Sequence[Path]) -> dict[str, list[Sentence]]:
    """That of files, in three parts.

    Raises:
        FormatError: for a file that is missing, binary or not UTF-8.
        InputError: if there is too little text.
    """
    corpus = [each for paragraph in texts.paragraphs(paths) for each in sentences(paragraph)]
    tokens = sum(map(len, corpus))
    if tokens < LEAST_TOKENS:
        there = quantity(tokens, "word or mark", "words and marks")
        raise InputError(
            f"{' and '.join(map(str, paths))}: {there} of text, and {LEAST_TOKENS:,} are needed "
            "(about 30 kB of English): give more."
        )
    return split([[each] for each in corpus], max(1, len(corpus) // CHUNKS_OF_SENTENCES))


def split(groups: Sequence[list[Sentence]], a_chunk: int) -> dict[str, list[Sentence]]:
    """The sentences of the three parts, of which each has whole chunks of so many groups."""
    parts: dict[str, list[Sentence]] = {"train": [], "valid": [], "test": []}
    for number, group in enumerate(groups):
        position = number // a_chunk % CHUNKS_A_ROUND
        name = {CHUNKS_A_ROUND - 2: "valid", CHUNKS_A_ROUND - 1: "test"}.get(position, "train")
        parts[name] += group
    return parts


def write_corpus(
    folder: Path, parts: dict[str, list[Sentence]], threshold: int, most_words: int
) -> str:
    """Write the three files.

    Args:
        folder: where to, made if it is not there.
        threshold: words that the training part has fewer times become `<unk>`.
        most_words: of the others all but the so many most frequent ones, too.

    Returns:
        A sentence with the sizes.
    """
    counts = Counter(token for sentence in parts["train"] for token in sentence)
    known = {
        token for token, count in counts.most_common(most_words) if count >= threshold
    } - {"<unk>"}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with (
            atomic_write(folder / f"{name}.tokens") as path,
            path.open("w", encoding="utf-8", newline="\n") as file,
        ):
            for sentence in part:
                print(*(token if token in known else "<unk>" for token in sentence), file=file)
    sizes = ", ".join(
        f"{name} {sum(len(sentence) + 1 for sentence in part)}" for name, part in parts.items()
    )
    unknown = 1 - sum(counts[token] for token in known) / counts.total()
    return (
        f"{folder}: {len(known)} types, and {unknown:.1%} of the training part are others, which "
        f"become <unk>; tokens with sentence ends: {sizes}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("texts", type=Path, nargs="*", help="plain text in UTF-8, any language")
    parser.add_argument(
        "--threshold",
        type=int,
        default=3,
        help="words that the training part has fewer times become <unk> (default: 3)",
    )
    parser.add_argument(
        "--most-words",
        type=int,
        default=4000,
        help="all but the most frequent ones become <unk>, too (default: 4000)",
    )
    arguments = parser.parse_args()

    def make() -> None:
        parts = of_texts(arguments.texts) if arguments.texts else of_documentation()
        print(write_corpus(arguments.folder, parts, arguments.threshold, arguments.most_words))

    return run(PROGRAM, make)


if __name__ == "__main__":
    sys.exit(main())
