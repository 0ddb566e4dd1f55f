"""A language model as a folder, which torch alone reads.

`model.safetensors` holds the parameters, `config.json` what they are of, `dict.txt` the words. No
file of it can run code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import safetensors
from fairseq_fixedpoint.language_model.config import LanguageModelConfig
from fairseq_fixedpoint.language_model.dictionary import SPECIAL, WordList, checksum
from fairseq_fixedpoint.language_model.model import LanguageModel

CONFIG, WEIGHTS, WORDS = "config.json", "model.safetensors", "dict.txt"
FORMAT = "fairseq_fixedpoint.language_model"
VERSION = 1


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds.

    Attributes:
        model: on the CPU, in evaluation mode.
        words: its dictionary.
        add_bos_token: whether a text comes after `<s> </s>` instead of `</s>`.
        trained_with_penalty: whether the normaliser was trained to be 1 (`--log-z-penalty`).
    """

    model: LanguageModel
    words: WordList
    add_bos_token: bool = False
    trained_with_penalty: bool = False


def write_folder(
    folder: Path,
    model: LanguageModel,
    symbols: Sequence[str],
    add_bos_token: bool = False,
    trained_with_penalty: bool = False,
) -> None:
    """Writes a model into a folder that is there and empty.

    Args:
        model: of which the parameters of :class:`LanguageModel` alone are written.
        symbols: its dictionary, the special ones first.
        add_bos_token, trained_with_penalty: see :class:`ModelFolder`.

    Raises:
        InputError: for a dictionary whose special symbols are not fairseq's usual ones.
    """
    if tuple(symbols[: len(SPECIAL)]) != SPECIAL:
        raise InputError(
            f"the dictionary begins with {' '.join(symbols[: len(SPECIAL)])}, and a folder's must "
            f"begin with {' '.join(SPECIAL)}."
        )
    described = asdict(model.config) | {"iterations": model.iterations}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": described,
        "dictionary_sha256": checksum(symbols),
        "add_bos_token": add_bos_token,
        "trained_with_penalty": trained_with_penalty,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    WordList(symbols).write(folder / WORDS)
    parameters = LanguageModel(model.config).state_dict()
    state = model.state_dict()
    with (folder / WEIGHTS).open("wb") as file:
        safetensors.write(file, {name: state[name] for name in parameters})


def read_folder(folder: str | Path) -> ModelFolder:
    """Reads a model.

    Raises:
        InputError: for a folder that lacks a file, is of a later version, or whose files do not go
            together.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, WORDS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no folder of a model: {name} is not there.")
    described = _described(folder / CONFIG)
    config = _config(folder / CONFIG, described)
    words = WordList.read(folder / WORDS, config.output_vocabulary_size)
    if checksum(words.symbols) != described.get("dictionary_sha256"):
        raise InputError(
            f"{folder / WORDS} is not the dictionary that the model was written with: take all "
            "files of the folder from one conversion."
        )
    try:
        model = LanguageModel(config)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    state = safetensors.read(folder / WEIGHTS)
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    try:
        if len(kinds) == 1:
            model = model.to(kinds.pop())
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # PyTorch's of sizes, and our own of a type
        raise InputError(
            f"{folder / WEIGHTS} does not hold the parameters that {CONFIG} describes: {error}"
        ) from error
    return ModelFolder(
        model.eval(),
        words,
        bool(described.get("add_bos_token")),
        bool(described.get("trained_with_penalty")),
    )


def _described(path: Path) -> dict:
    """What a config.json says, of a version that is known here."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON: {error}. Convert the model again, or copy the file again."
        ) from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise InputError(f"{path} does not describe a model of this project ({FORMAT}).")
    version = described.get("version")
    if version != VERSION:
        raise InputError(
            f"{path} is of version {version}, and this program reads version {VERSION}: use the "
            "one that wrote it, or convert the checkpoint again."
        )
    return described


def _config(path: Path, described: dict) -> LanguageModelConfig:
    values = described.get("model")
    known = {field.name for field in fields(LanguageModelConfig)}
    if not isinstance(values, dict) or values.keys() - known:
        unknown = sorted(values.keys() - known) if isinstance(values, dict) else ["model"]
        raise InputError(f"{path} has a wrong entry, {unknown[0]}.")
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    hints = get_type_hints(LanguageModelConfig)
    for name, value in values.items():
        if not _is_a(value, hints[name]):
            raise InputError(f"{path} has a wrong value of {name}, {json.dumps(value)}.")
    try:
        config = LanguageModelConfig(**values)
        config.check()  # before there is anything of these sizes
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    return config


def _is_a(value: object, hint: Any) -> bool:
    """Whether a value of a JSON file, lists being tuples, is of the type that a field has."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is not None:  # a union
        return any(_is_a(value, each) for each in get_args(hint))
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
