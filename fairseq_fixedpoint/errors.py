"""What a person can put right."""


class InputError(ValueError):
    """Wrong input or a wrong combination of options; the message is a sentence that says which."""
