"""What a checkpoint is held to besides the shapes of its weights.

Dictionaries and orders travel in it as buffers of the encoder and of the decoder.
"""

import hashlib
import logging

import torch
from fairseq.data import Dictionary
from torch import Tensor

logger = logging.getLogger(__name__)


def check_dictionary(state_dict: dict, module: str, dictionary: Dictionary) -> None:
    """Raises ValueError if a checkpoint's `module` was trained with another dictionary."""
    theirs = state_dict.get(f"{module}.dictionary_fingerprint")
    if theirs is not None and not torch.equal(theirs.cpu(), fingerprint(dictionary)):
        rows = state_dict[f"{module}.embed_tokens.weight"].size(0)
        raise ValueError(
            f"the checkpoint's {module} was trained with another dictionary ({rows} entries) than "
            f"this data's ({len(dictionary)} entries): evaluate it on data that was prepared with "
            "its own dictionary (fairseq-preprocess --srcdict, --tgtdict)."
        )


def tell_order(module: str, option: str, trained: int, now: int, stride: int = 1) -> None:
    """Warns of an order that a state has not learned with: above training's, or exact against not.

    Args:
        module: `encoder` or `decoder`.
        option: that says K for it.
        trained: K in training; 0 is the exact recurrence.
        now: K that it is used at.
        stride: C of training, which had the orders up to K + C - 1.
    """
    if now == trained or 0 < now < trained + (stride if trained else 0):
        return
    learned, seen = (
        f"{order} token{'s' * (order > 1)}" if order else "all tokens" for order in (trained, now)
    )
    logger.warning(
        f"the checkpoint's {module} was trained with {option} {trained} and is now used with "
        f"{option} {now}: a state that has learned from {learned} now sees {seen}, "
        "and the model's probabilities are other ones, better or worse."
    )


def fingerprint(dictionary: Dictionary) -> Tensor:
    """A hash of the symbols in order, as 8 bytes that travel in the checkpoint."""
    symbols = "\n".join(dictionary.symbols).encode()
    # Wide integers, so that averaging checkpoints by summing and dividing leaves them as they are.
    return torch.tensor(list(hashlib.sha256(symbols).digest()[:8]), dtype=torch.int64)
