"""``python -m bot_dist.cli`` is the command ``bot_dist``."""

from bot_dist.cli import main

if __name__ == "__main__":
    main()
