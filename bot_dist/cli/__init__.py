"""The command line: verbs, their options, and what each shows."""

from bot_dist.cli.command import main

__all__ = ["main"]
