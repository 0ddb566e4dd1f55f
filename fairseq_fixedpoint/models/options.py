"""How the models read and register their options."""

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model_architecture


def or_default(value, default):
    """`value`, or `default` for an option that was not given."""
    return default if value is None else value


def check_at_least_one(cfg: FairseqDataclass, *names: str) -> None:
    """Raises ValueError for an option that is given and below 1."""
    for name in names:
        value = getattr(cfg, name)
        if value is not None and value < 1:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least 1, not {value}.")


def register_architecture(model: str, name: str, **defaults) -> None:
    """Registers an architecture: defaults that options given by the user override."""

    @register_model_architecture(model, name)
    def set_defaults(args):
        for option, value in defaults.items():
            setattr(args, option, utils.safe_getattr(args, option, value))
