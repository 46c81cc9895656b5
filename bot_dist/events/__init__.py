"""Everything that long work tells while it goes on, as typed events: what they share is here, and their kinds are in
the modules ``transfer``, ``calibrate``, ``training`` and ``checkpoints``, by stage."""

from bot_dist.events.event import Event, OnEvent, ignore, log

__all__ = ["Event", "OnEvent", "ignore", "log"]
