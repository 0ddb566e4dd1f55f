"""How the models read their options."""

from fairseq.dataclass import FairseqDataclass


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
