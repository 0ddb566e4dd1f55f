"""The one exception of rescoring for what a person can put right."""

from fairseq_fixedpoint.errors import InputError


class RescoringError(InputError):
    """Wrong input or a wrong combination of options; the message is a sentence that says which."""
