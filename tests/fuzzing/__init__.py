"""What `tests/fuzz_commands.py` stands on: models, what they say by their formula, random input."""
