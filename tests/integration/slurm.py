#!/usr/bin/env python3
"""A stand-in for ``srun`` and ``scontrol``, called by one of these names: it starts processes for real, over ssh.

It takes the options that launch/slurm.sbatch uses, and refuses others, as SLURM does.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path


def expanded(nodes: str) -> list[str]:
    """``node[1-3]`` as names."""
    prefix, first, last = re.fullmatch(r"(\w+)\[(\d+)-(\d+)\]", nodes).groups()
    return [f"{prefix}{i}" for i in range(int(first), int(last) + 1)]


def scontrol(arguments: list[str]) -> int:
    verb, what, nodes = arguments
    assert (verb, what) == ("show", "hostnames")
    print(*expanded(nodes), sep="\n")
    return 0


def srun(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ntasks", type=int, required=True)
    parser.add_argument("--nodelist")
    parser.add_argument("--exclude")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--cpu-bind", choices=["none"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    step = parser.parse_args(arguments)
    hosts = [h for h in expanded(os.environ["SLURM_JOB_NODELIST"]) if h != step.exclude]
    hosts = [step.nodelist] if step.nodelist else hosts
    assert len(hosts) == step.nodes == step.ntasks, (hosts, step)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "_", "SLURM_CPUS_ON_NODE")}
    environment["SLURM_CPUS_ON_NODE"] = "2"
    settings = [f"{k}={v}" for k, v in environment.items()]
    pid = f"/run/step-{os.getpid()}"  # of the task, on its node
    inner = shlex.join(["env", *settings, "sh", "-c", f'cd "$0"; echo $$ > {pid}; exec "$@"', os.getcwd()])
    tasks = [subprocess.Popen(["ssh", host, f"{inner} {shlex.join(step.command)}"]) for host in hosts]

    def forward(number: int, frame: object) -> None:
        for host in hosts:
            subprocess.run(["ssh", host, f"kill -{number} $(cat {pid})"])

    signal.signal(signal.SIGTERM, forward)
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[Path(sys.argv[0]).name](sys.argv[1:]))
