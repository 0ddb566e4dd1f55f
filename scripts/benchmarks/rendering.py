"""Tables and plots from the JSON, put between markers in the documents.

    <!-- benchmark: layer-summary cpu -->
    ... whatever is here is replaced by the table, or by "Not measured" ...
    <!-- end -->

A name that ends in `.png` shows a plot. `aims` takes no device: it looks at all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fairseq_fixedpoint.files import atomic_write
from scripts.benchmarks import aims, results
from scripts.benchmarks.parts import part
from scripts.benchmarks.results import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    ROOT / name
    for name in (
        "README.md",
        "docs/results.md",
        "scripts/benchmarks/README.md",
        "examples/penn-treebank/README.md",
        "examples/solvers/README.md",
        "examples/wikitext-2/README.md",
    )
)
MARKED = re.compile(
    r"(?P<begin><!-- benchmark: (?P<name>\S+)(?: (?P<device>cpu|cuda))? -->\n).*?"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)
PLACES = {"cpu": "a CPU", "cuda": "a GPU"}


def render_all() -> None:
    """Renders every document anew, and leaves those alone that are right already.

    Raises:
        BenchmarkError: naming the document and the marker that nothing is known of.
    """
    runs = results.newest()
    for document in DOCUMENTS:
        if document.exists():
            before = document.read_text(encoding="utf-8")
            after = rendered(before, document, runs)
            if after != before:
                with atomic_write(document) as file:
                    file.write_text(after, encoding="utf-8")


def rendered(text: str, document: Path, runs: dict[str, dict[str, dict]]) -> str:
    """`text` with what belongs between its markers.

    Args:
        document: where it stands, for links and messages.
        runs: from :func:`results.newest`.
    """

    def between(match: re.Match) -> str:
        name, device = match["name"], match["device"]
        if name == "aims":
            body = aims.summary(runs)
        elif device is None:
            raise BenchmarkError(f"{document}: the marker of {name} names no device: cpu or cuda.")
        else:
            body = of_marker(name, device, document, runs[device])
        return f"{match['begin']}{body}{match['end']}"

    return MARKED.sub(between, text)


def of_marker(name: str, device: str, document: Path, runs: dict[str, dict]) -> str:
    of_part = re.split(r"[-.]", name)[0]
    run = runs.get(of_part)
    not_measured = f"Not measured on {PLACES[device]}.\n"
    if run is None:
        return not_measured
    if name.endswith(".png"):
        name = name.removesuffix(".png")
        plot = plot_path(run, name)
        link = Path(os.path.relpath(plot, document.parent)).as_posix()
        if plot.exists():
            return f"![{name}]({link})\n"
    elif name in (tables := part(of_part).tables(run)):
        return f"{tables[name]}\n{caption(run)}\n" if tables[name] else not_measured
    raise BenchmarkError(
        f"{document}: the marker {name} {device} names nothing that {of_part} has: correct it, or "
        f"run scripts/benchmark {of_part} if it draws it."
    )


def caption(run: dict) -> str:
    """What stands under a table: the machine, and when."""
    rates = run["machine"]["matrix_rate"]
    threads = f"{run['threads']} thread{'' if run['threads'] == 1 else 's'}"
    return (
        f"{run['hardware']}; {threads}, torch {run['torch']}, {run['date']}; "
        f"products of {rates['fp32'] / 1e9:,.0f} GFLOP/s (fp32) and {rates['bf16'] / 1e9:,.0f} "
        f"(bf16), {run['machine']['bandwidth'] / 1e9:,.0f} GB/s."
        + ("" if run["complete"] else " The run was interrupted.")
    )


def plot_path(run: dict, name: str) -> Path:
    return results.FOLDER / f"{results.slug(run['hardware'])}-{name}.png"


def draw(path: Path) -> None:
    """The plots of a file of results, beside it."""
    results_file = results.read(path)
    for name, run in results_file["parts"].items():
        plots = getattr(part(name), "plots", None)
        for plot, figure in (plots(run) if plots else {}).items():
            with atomic_write(path.parent / plot_path(run, plot).name) as file:
                figure.savefig(file, dpi=100)
