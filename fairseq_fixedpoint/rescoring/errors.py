"""The one exception for what a person can put right."""


class RescoringError(ValueError):
    """Wrong input or a wrong combination of options; the message is a sentence that says which."""
