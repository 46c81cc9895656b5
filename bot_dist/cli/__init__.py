"""The command line: verbs, their options, and what each shows."""

from bot_dist.cli.verbs import main

__all__ = ["main"]
