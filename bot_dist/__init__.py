"""bot_dist."""
