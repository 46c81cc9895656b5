"""Execution by Ray actors, each of which owns a shard."""
