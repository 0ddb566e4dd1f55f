"""What a checkpoint is held to besides the shapes of its weights.

Dictionaries, and where the iteration starts, travel in it as buffers of the encoder and of the
decoder.
"""

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_fixedpoint.language_model.config import STARTS
from fairseq_fixedpoint.language_model.dictionary import checksum


def check_dictionary(state_dict: dict, module: str, dictionary: Dictionary) -> None:
    """Raises ValueError if a checkpoint's `module` was trained with another dictionary."""
    stored = state_dict.get(f"{module}.dictionary_fingerprint")
    if stored is not None and not torch.equal(stored.cpu(), fingerprint(dictionary)):
        rows = state_dict[f"{module}.embed_tokens.weight"].size(0)
        differs = (
            f"{rows} entries, and this data's has {len(dictionary)}"
            if rows != len(dictionary)
            else "as many entries as this data's, but others, or in another order"
        )
        raise ValueError(
            f"the checkpoint's {module} was trained with another dictionary ({differs}): evaluate "
            "it on data that was prepared with its own dictionary (fairseq-preprocess --srcdict, "
            "--tgtdict)."
        )


def fingerprint(dictionary: Dictionary) -> Tensor:
    """A hash of the symbols in order, as 8 bytes that travel in the checkpoint."""
    first = bytes.fromhex(checksum(dictionary.symbols))[:8]
    # Wide integers, so that averaging checkpoints by summing and dividing leaves them as they are.
    return torch.tensor(list(first), dtype=torch.int64)


def check_summary(state_dict: dict, module: str, own_state: dict) -> None:
    """Raises ValueError if a checkpoint's `module` has another start than the model.

    Args:
        own_state: what the model's own module would put into a checkpoint, without `module`.
    """
    prefix = f"{module}."
    trained = _start_options(
        {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
    )
    configured = _start_options(own_state)
    if trained != configured:
        raise ValueError(
            f"the checkpoint was trained with {_of_those(trained, configured)}, and the options "
            f"say {_of_those(configured, trained)}: these are different models, so give the "
            "options of its training."
        )


def _of_those(options: dict[str, str], others: dict[str, str]) -> str:
    """The options that are not among the others, as a user gives them; or that none of these is."""
    given = (f"{name} {value}" for name, value in options.items() if others.get(name) != value)
    return " ".join(given).rstrip() or f"no {' '.join(others.keys() - options.keys())}"


def _start_options(state: dict[str, Tensor]) -> dict[str, str]:
    """The options of the start that a decoder's state stands for, and their values."""
    if "summary.settings" not in state:
        return {"--start": "constant"}
    start, tokens, *decays = state["summary.settings"].tolist()
    decays_text = ",".join(str(decay / 1e9) for decay in decays)
    width = state["summary.of_tokens.embed_tokens.weight"].size(1)
    inputs = state["rnn.layers.0.weight_ih_l0"].size(1)
    is_input = inputs > state["embed_tokens.weight"].size(1)
    options = {
        "--start": STARTS[start],
        "--start-tokens": str(tokens),
        "--start-decays": decays_text,
        "--start-width": str(width),
    }
    return options | ({"--summary-input": ""} if is_input else {})
