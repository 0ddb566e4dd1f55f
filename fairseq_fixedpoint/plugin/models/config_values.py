"""How the models read their options."""

from typing import Any, TypeVar

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf

T = TypeVar("T")


def option(name: str) -> str:
    """How a user of fairseq's commands gives the attribute `name` of a dataclass."""
    return "--" + name.replace("_", "-")


def or_default(value: T | None, default: T) -> T:
    """`value`, or `default` for an option that was not given."""
    return default if value is None else value


def with_defaults(cfg: Any, config: type[FairseqDataclass]) -> Any:
    """A checkpoint's options, those that it does not know at their defaults.

    fairseq does so for a model's name, and not for that of an architecture: a checkpoint of
    `--arch fixedpoint_lm_ptb` would have to know all options that have come since.

    Args:
        cfg: as fairseq gives them to `build_model`.
        config: the dataclass of the model.
    """
    if not OmegaConf.is_config(cfg):
        return cfg
    return merge_with_parent(config(), cfg, remove_missing=True)


def check_at_least_one(cfg: FairseqDataclass, *names: str) -> None:
    """Raises ValueError for an option that is given and below 1."""
    for name in names:
        value = getattr(cfg, name)
        if value is not None and value < 1:
            raise ValueError(f"{option(name)} must be at least 1, not {value}.")
