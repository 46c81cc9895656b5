"""``bot_dist diff``: two checkpoints compared."""

from __future__ import annotations

from typing import Annotated

import typer

from bot_dist.cli.options import AsJson
from bot_dist.errors import BotDistError, InputError


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A store or another checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare metadata and digests only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints. Exit status: 0 no difference, 1 some, 2 they can't be compared."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.diff import show_diff
    from bot_dist.cli.show.plain import show_json
    from bot_dist.pipeline import checks

    try:
        with progress() as on_event:
            difference = checks.diff(first, second, on_event, quick=quick)
    except BotDistError as error:
        raise InputError(*error.args) from error
    if as_json:
        show_json({"equal": difference.equal, **difference.to_json()})
    else:
        show_diff(first, second, difference)
    if not difference.equal:
        raise typer.Exit(1)
