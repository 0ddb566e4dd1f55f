"""What the options of a model say of its class."""

from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY


def model_class(args: object) -> type | None:
    """The class that the options of a model name; None if fairseq knows it under another name."""
    name = model_name(args)
    return MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)


def model_name(args: object) -> str | None:
    """What --arch was, in the options of a model."""
    return getattr(args, "_name", None) or getattr(args, "arch", None)
