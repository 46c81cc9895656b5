"""Statistics of a source model from a text, streamed through it block by block."""
