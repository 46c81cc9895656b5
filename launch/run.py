"""Runs one bot_dist verb on the Ray cluster whose node executes this script; needs nothing from its own folder.

ray job submit --working-dir . -- python launch/run.py configs/quickstart.yaml --set output=/shared/run
ray submit launch/cluster/local.yaml launch/run.py -- scale configs/quickstart.yaml

What a job writes is given by absolute paths: its working directory is a folder that Ray hides and may delete. The verb
may be left out: ``run``. ``ray submit`` joins the arguments unquoted: use none with spaces.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence

VERBS = ("run", "plan", "scale", "pretrain", "compare", "verify", "inspect", "diff", "export", "schema")
NO_PACKAGE = """launch/run.py: the package bot_dist is not importable on this node; bring it by one of
  ray job submit --working-dir . -- python launch/run.py …   (from the root of the repository)
  file_mounts and setup_commands of the cluster file          (as launch/cluster/local.yaml does)"""


NO_DEPENDENCY = """launch/run.py: {python} has bot_dist, but not {name}, which it needs;
  start Ray from an environment where bot_dist is installed, with its `python` first on the PATH:
  bash launch/setup.sh && source .venv/bin/activate && ray start …"""


def with_verb(arguments: Sequence[str]) -> list[str]:
    """The command line of ``bot_dist``: ``run`` where a recipe is given and no verb."""
    recipe = any(re.search(r"\.ya?ml(:|$)", argument) for argument in arguments)
    return ["run", *arguments] if recipe and arguments[0] not in VERBS else list(arguments)


def main() -> None:
    if importlib.util.find_spec("bot_dist") is None:
        sys.exit(NO_PACKAGE)
    os.environ.setdefault("RAY_ADDRESS", "auto")  # join the cluster that this node belongs to
    try:
        from bot_dist.cli import main as bot_dist
    except ModuleNotFoundError as error:
        sys.exit(NO_DEPENDENCY.format(python=sys.executable, name=error.name))
    bot_dist(with_verb(sys.argv[1:]))


if __name__ == "__main__":
    main()
