"""Make a small corpus of English from the documentation that Python carries.

Writes train.tokens, valid.tokens and test.tokens: lower-case words and punctuation separated by
spaces, one sentence a line. The text depends on the version of Python and on nothing else.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

# Consecutive paragraphs stay together, so that a stream of text reads as one.
PARAGRAPHS_A_CHUNK = 8
CHUNKS_A_ROUND = 10  # of which one goes to validation and one to the test

# A word, a name with its dots and underscores, a number, or one mark.
TOKEN = re.compile(r"\w+(?:[.'\u2019-]\w+)*|\S")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])")
# What only code, grammars and headings have.
NOT_PROSE = re.compile(r">>>|::=|={3,}|\*{3,}|-{3,}|~{3,}|\^{3,}")


def paragraphs() -> Iterator[str]:
    """The paragraphs of prose, each once: some sections stand in several topics."""
    seen = set()
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            paragraph = " ".join(block.split()).removeprefix("* ")
            words = paragraph.split()
            is_prose = (
                len(words) > 5
                and paragraph[-1] in ".:!?)"
                and not NOT_PROSE.search(paragraph)
                and sum(word.strip("\"'.,:;()*").isalpha() for word in words) > 0.7 * len(words)
            )
            if is_prose and paragraph not in seen:
                seen.add(paragraph)
                yield paragraph


def sentences(paragraph: str) -> list[list[str]]:
    """The tokens of each sentence."""
    # The documentation puts names between double quotes and stresses words with asterisks.
    text = re.sub(r"[\"*“”]", "", paragraph)
    return [TOKEN.findall(sentence.lower()) for sentence in SENTENCE_END.split(text)]


def split() -> dict[str, list[list[str]]]:
    """The sentences of the three parts."""
    parts = {"train": [], "valid": [], "test": []}
    for number, paragraph in enumerate(paragraphs()):
        position = number // PARAGRAPHS_A_CHUNK % CHUNKS_A_ROUND
        name = {CHUNKS_A_ROUND - 2: "valid", CHUNKS_A_ROUND - 1: "test"}.get(position, "train")
        parts[name].extend(sentence for sentence in sentences(paragraph) if sentence)
    return parts


def write_corpus(folder: Path, threshold: int) -> str:
    """Write the three files.

    Args:
        folder: where to, made if it is not there.
        threshold: words that the training part has fewer times become `<unk>`.

    Returns:
        A sentence with the sizes.
    """
    parts = split()
    counts = Counter(token for sentence in parts["train"] for token in sentence)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with (folder / f"{name}.tokens").open("w", encoding="utf-8") as file:
            for sentence in part:
                known = (token if counts[token] >= threshold else "<unk>" for token in sentence)
                print(*known, file=file)
    sizes = ", ".join(
        f"{name} {sum(len(sentence) + 1 for sentence in part)}" for name, part in parts.items()
    )
    types = sum(count >= threshold for count in counts.values())
    return f"{folder}: {types} types; tokens with sentence ends: {sizes}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument(
        "--threshold",
        type=int,
        default=3,
        help="words that the training part has fewer times become <unk> (default: 3)",
    )
    arguments = parser.parse_args()
    print(write_corpus(arguments.folder, arguments.threshold))


if __name__ == "__main__":
    main()
