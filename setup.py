"""Build definition of the fairseq_fixedpoint plugin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read(name: str) -> str:
    """The text of a file next to this one, or nothing when it is left out of a source archive."""
    path = HERE / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


# Read as text: importing the package would need torch, which a build does not have.
VERSION = re.search(r'^__version__ = "(.+)"$', read("fairseq_fixedpoint/__init__.py"), re.M)[1]

# fairseq itself is an extra and not a requirement: the distributions `fairseq` and `fairseq-fixed`
# both install the import package `fairseq`, so requiring either would write over the other one in
# the environment of somebody who already has it.
EXTRAS = {
    # Two distributions of the same code. `ve-fairseq` is wheels alone, and the one with a wheel for
    # Python 3.11; `fairseq-fixed` has one for 3.12, and is compiled elsewhere.
    "fairseq": [
        "ve-fairseq>=0.12.3,<0.13; python_version == '3.11' and platform_system == 'Linux' "
        "and platform_machine == 'x86_64'",
        "fairseq-fixed>=0.12.3.1,<0.13; python_version != '3.11' or platform_system != 'Linux' "
        "or platform_machine != 'x86_64'",
        "hydra-core>=1.3,<1.4",
        "omegaconf>=2.3,<2.4",
        "sacrebleu>=2,<3",
    ],
    "kenlm": ["ufal-kenlm>=26.4"],  # the code and module of `kenlm`, which has no wheels
    "rescoring": ["rapidfuzz>=3.9", "sacrebleu>=2,<3", "tqdm>=4.60"],
    # The step of a model as an ONNX file, with PyTorch 2.13 or later, and what runs it.
    "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],
    # The beam search of torchaudio's `ctc_decoder`, without wheels for Python 3.13. pyctcdecode is
    # not here: it asks for numpy below 2, so pip would go back to an old numpy (docs/install.md).
    "ctc": ["flashlight-text>=0.0.7; python_version < '3.13'"],
    "spectral": ["scipy>=1.10"],
    "demo": ["matplotlib>=3.5"],
    "test": [
        "hypothesis>=6",
        "jiwer>=4",  # which word error rates are compared with
        "kaldifst>=1.8",  # OpenFst, which searches of lattices are compared with
        "mypy>=1.13",
        "pytest>=7.4",
        "pytest-xdist>=3",
        "ruff>=0.6",
        "tensorboardX>=2.5",
        # Its interpreter runs the GPU kernels on a CPU. PyTorch's builds for CUDA bring it along.
        "triton>=3.3; platform_system == 'Linux' and platform_machine == 'x86_64'",
    ],
}

setup(
    name="fairseq_fixedpoint",
    version=VERSION,
    description="Fixed-point recurrent language models for fairseq (after Wang and Ragni, 2021)",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="The fairseq_fixedpoint authors",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["fairseq_fixedpoint", "fairseq_fixedpoint.*"]),
    package_data={"fairseq_fixedpoint": ["config/**/*.yaml", "py.typed"]},
    install_requires=["numpy>=1.23.5", "torch>=2.7"],
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    entry_points={
        "console_scripts": [
            "fixedpoint-convert = fairseq_fixedpoint.cli.convert:main",
            "fixedpoint-score = fairseq_fixedpoint.cli.score:main",
            "fixedpoint-rescore = fairseq_fixedpoint.cli.rescore:main",
            "fixedpoint-spectral = fairseq_fixedpoint.cli.spectral:main",
            "fixedpoint-tag = fairseq_fixedpoint.cli.tag:main",
            "fixedpoint-tag-data = fairseq_fixedpoint.cli.tag_data:main",
        ],
    },
    zip_safe=False,
)
