"""The documentation that Python carries, as paragraphs of English."""

import re
from collections.abc import Iterator
from pydoc_data.topics import topics

# What only code, grammars and headings have.
NOT_PROSE = re.compile(r">>>|::=|={3,}|\*{3,}|-{3,}|~{3,}|\^{3,}")
# Names stand between double quotes, and what is stressed between asterisks.
MARKUP = re.compile(r"[\"*“”]")


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
                yield MARKUP.sub("", paragraph)
