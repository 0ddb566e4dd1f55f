"""The documents as data: their blocks, commands, code spans, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Those that tell how to use and work on the project, whose commands and options are checked ...
MANUAL = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
# ... and all, whose links are.
ALL = (
    *MANUAL,
    ROOT / "CHANGELOG.md",
    ROOT / "findings" / "README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "scripts").glob("*/README.md")),
)

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A blank line, then lines that are indented by four spaces, blank ones between them.
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n(?:\n+(?= {4}))?)+")
CODE_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# A block that is not a command is an equation or a picture of positions.
FIGURE = re.compile(r"^position |[^=<>]=\s", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        document: where it stands.
        words: the program and its arguments, without variables of the environment; of a pipeline,
            those of its end.
        input_words: those of what writes the standard input; empty if nothing does.
    """

    document: Path
    words: tuple[str, ...]
    input_words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def program(self) -> str:
        return self.words[0]


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def blocks(document: Path) -> Iterator[str]:
    """The indented blocks, without their indentation."""
    for match in INDENTED.finditer(FENCED.sub("", read(document))):
        yield "".join(line[4:] or "\n" for line in match[0].splitlines(keepends=True))


def python_blocks(document: Path) -> list[str]:
    """The fenced blocks of Python."""
    return [body for language, body in FENCED.findall(read(document)) if language == "python"]


def commands(document: Path) -> Iterator[Command]:
    """The command lines of the indented blocks."""
    for block in blocks(document):
        if not FIGURE.search(block.replace("\\\n", "").partition("\n")[0]):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield _command(document, words)


def _command(document: Path, words: list[str]) -> Command:
    before: list[str] = []
    if "|" in words:
        pipe = words.index("|")
        before, words = words[:pipe], words[pipe + 1 :]
    while ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    return Command(document, tuple(words), tuple(before))


def code_spans(document: Path) -> list[str]:
    """What stands between backticks, lines joined; also the lines of commands."""
    text = FENCED.sub("", read(document))
    spans = [" ".join(span.split()) for _, span in CODE_SPAN.findall(INDENTED.sub("\n", text))]
    return spans + [str(command) for command in commands(document)]


def links(document: Path) -> list[str]:
    """The targets of links and pictures that are no addresses of the web."""
    text = CODE_SPAN.sub("", INDENTED.sub("\n", FENCED.sub("", read(document))))
    return [target for target in LINK.findall(text) if "://" not in target]


def anchors(document: Path) -> set[str]:
    """Those of the headings, as hosts of repositories make them."""
    text = INDENTED.sub("\n", FENCED.sub("", read(document)))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in HEADING.findall(text)
    }
