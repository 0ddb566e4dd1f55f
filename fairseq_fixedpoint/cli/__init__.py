"""The commands: what they read and write."""
