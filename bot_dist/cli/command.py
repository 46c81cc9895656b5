"""The command ``bot_dist``: its verbs, and how it ends.

Exit status: 0 done, 1 failed, 2 the input is wrong, 128 + signal where Ctrl-C (130), SIGTERM (143) or a hang-up (129)
stopped it. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from bot_dist.cli.options import Version, with_options
from bot_dist.cli.verbs.compare import compare
from bot_dist.cli.verbs.diff import diff
from bot_dist.cli.verbs.export import export
from bot_dist.cli.verbs.inspect import inspect
from bot_dist.cli.verbs.plan import plan
from bot_dist.cli.verbs.pretrain import pretrain
from bot_dist.cli.verbs.run import run
from bot_dist.cli.verbs.scale import scale
from bot_dist.cli.verbs.schema import schema
from bot_dist.cli.verbs.verify import verify
from bot_dist.errors import BotDistError, presentable
from bot_dist.storage.disk import told

VERBS = (run, plan, scale, pretrain, compare, verify, inspect, diff, export, schema)
"""Verbs in the order of the help."""
INTERRUPTED = 130
"""The status that typer returns when Ctrl-C stopped a verb."""

app = typer.Typer(
    name="bot_dist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def bot_dist(version: Version = False) -> None:
    """Grow and shrink pretrained transformers by wavelets."""


for verb in VERBS:
    app.command()(with_options(verb))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not all terminals have all characters
            stream.reconfigure(errors="backslashreplace")
    stopped_by = [signal.SIGINT]
    _stop_as_ctrl_c(stopped_by)
    try:
        status = app(args=list(argv) if argv is not None else None, prog_name=app.info.name, standalone_mode=False)
    except BotDistError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            if message := error.format_message():
                _fail(presentable(message), 2)
            sys.exit(2)  # the help is shown already
        if (refused := told(error)) is not None:
            _fail(presentable(refused), 1)
        if isinstance(error, MemoryError):
            _fail(presentable(f"there is not enough memory: {error or 'none is left'}"), 1)
        sys.stderr.writelines(f"{presentable(line)}\n" for line in traceback.format_exc().splitlines())
        sys.exit(1)
    if status == INTERRUPTED:
        message = "interrupted; nothing unfinished was committed, run the same command again to resume"
        _fail(message, 128 + stopped_by[-1])
    sys.exit(status or 0)


def _stop_as_ctrl_c(stopped_by: list[signal.Signals]) -> None:
    """SIGTERM (a scheduler) and SIGHUP (a terminal that is gone) stop a verb as cleanly as Ctrl-C, and are remembered.

    They often come twice, from the scheduler and from its script: the first is enough, the others don't disturb it.
    """

    kinds = signal.SIGTERM, signal.SIGHUP

    def stop(number: int, frame: object) -> None:
        if len(stopped_by) == 1:
            stopped_by.append(signal.Signals(number))
            for kind in kinds:  # to the very end: Python takes its handlers away before it is gone
                signal.signal(kind, signal.SIG_IGN)
            raise KeyboardInterrupt

    for kind in kinds:
        if signal.getsignal(kind) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(kind, stop)


def _fail(message: str, status: int) -> NoReturn:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message)
    sys.exit(status)
