"""The command line, run in forks of a process that has imported everything: each with a bound on memory and time.

``python -m tests.mutations.runner`` reads requests as JSON lines, ``[folder, [arguments, …]]``, runs the command lines
one after the other in one fork until one fails, and answers with what became of the last.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2**30
"""That a command may take more than the process that it is forked from."""
CPU_S = 60
PRELOADED = (
    *("bot_dist.fit.stages", "bot_dist.pipeline.checks", "bot_dist.pipeline.run", "bot_dist.cli"),
    *("bot_dist.cli.show.inspect", "bot_dist.formats.exports.safetensors", "bot_dist.formats.exports.gguf"),
    *("bot_dist.execute.local", "bot_dist.data.images"),
    *("bot_dist.kernels.kernels", "gguf", "numba", "pyarrow.parquet", "pyarrow.csv", "pywt", "rich.progress", "torch"),
    *("transformers.models.llama.modeling_llama", "transformers.models.vit.modeling_vit"),
)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a command line."""

    verb: str
    status: int
    """Negative: the signal that ended it."""
    out: str
    err: str
    seconds: float
    """Of CPU."""
    grown: int
    """Bytes that were resident at most, over those before."""


class Runner:
    """The process that forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutations.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(self, folder: Path, *commands: list[str]) -> Outcome:
        """The outcome of the first command that fails, else of the last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), commands]) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(30)


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed here is no answer
    for line in sys.stdin:
        folder, commands = json.loads(line)
        found: dict[str, Any] = {}
        for command in commands:
            found = _forked(Path(folder), command)
            if found["status"] != 0:
                break
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _forked(folder: Path, command: list[str]) -> dict[str, Any]:
    before = _resident()
    if not (child := os.fork()):
        _run(folder, command)
    _, status, usage = os.wait4(child, 0)
    out, err = ((folder / name).read_bytes().decode(errors="replace") for name in (".out", ".err"))
    return {
        "verb": command[0],
        "status": os.waitstatus_to_exitcode(status),
        "out": out,
        "err": err,
        "seconds": usage.ru_utime + usage.ru_stime,
        "grown": max(0, usage.ru_maxrss * 1024 - before),
    }


def _run(folder: Path, command: list[str]) -> None:
    """In the fork; does not return."""
    os.chdir(folder)
    for number, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * MEMORY_BYTES,) * 2)  # not all is used
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    status = 70
    try:
        from bot_dist.cli import main

        main(command)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    _serve()
