"""Machines on this machine: namespaces, each with an address, a home, a /tmp, a /dev/shm and processes of its own.

They share the other files, as a cluster with a network file system does. Nothing leaves their network, and ending one
ends all its processes. Needs root, and Debian's iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parent.parent
NETWORK = "192.168.1."
CPUS = 2
"""Of each machine, as its processes count them."""
LACKING = (
    "this test makes namespaces: run it as root, after apt-get install iproute2 openssh-client openssh-server rsync"
)

ACCOUNTS = """root:*:0:0:root:{home}:/bin/bash
sshd:*:100:65534::/run/sshd:/usr/sbin/nologin
"""
SSHD = """HostKey {key}
AuthorizedKeysFile .ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""
START = """
mount --bind {at}/hosts /etc/hosts
mount --bind {at}/passwd /etc/passwd
mount --bind {at}/shadow /etc/shadow
mount --bind {at}/nsswitch.conf /etc/nsswitch.conf
{keep}
mount --rbind {at}/tmp /tmp
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
mount --bind {at}/cpus /sys/devices/system/cpu/online
hostname {name}
touch {at}/up
while :; do sleep 1; done
"""
"""Run by the first process of a machine. It stays, and reaps what others leave."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, which is up."""

    name: str
    address: str
    home: Path
    pid: int
    """Of its first process, seen from outside."""

    def command(self, *argv: str | Path, cwd: Path = ROOT, **environment: str) -> list[str]:
        """What runs ``argv`` there as root, with a user's environment and the project's ``.venv`` activated."""
        variables = {
            "HOME": str(self.home),
            "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            **environment,
        }
        settings = [f"{key}={value}" for key, value in variables.items()]
        inside = ["nsenter", f"--target={self.pid}", "--all", f"--wdns={cwd}", "env", "-i", *settings]
        return [*inside, *map(str, argv)]

    def run(
        self, *argv: str | Path, timeout_s: float = 120, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end. Its stderr is in stdout."""
        return subprocess.run(
            self.command(*argv, cwd=cwd, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def start(self, *argv: str | Path, cwd: Path = ROOT, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command there. Signals have to be sent from inside (``signal``)."""
        with log.open("w") as output:
            return subprocess.Popen(
                self.command(*argv, cwd=cwd, **environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, name: str, pattern: str) -> None:
        """Send a signal to the processes there whose command line matches."""
        sent = self.run("pkill", f"-{name}", "-f", pattern)
        assert sent.returncode == 0, f"no process of {self.name} matches {pattern}: {self.processes()}"

    def ran(self, actor: str, session: str) -> bool:
        """Whether Ray's logs there, in a session's folder, tell of an actor of this class."""
        return self.run("bash", "-c", f"grep -qs ':actor_name:.*{actor}' {session}/logs/worker-*.out").returncode == 0

    def processes(self) -> list[str]:
        return self.run("ps", "-eo", "args", "--no-headers").stdout.splitlines()


@contextlib.contextmanager
def machines(at: Path, *names: str) -> Iterator[list[Machine]]:
    """Machines at ``NETWORK`` 10, 11, …, in one network of their own, reached among them by ssh without a password.

    ``at`` is a new folder for their files; all of them see it.
    """
    if lacking() is not None:
        pytest.fail(LACKING)
    addresses = {name: f"{NETWORK}{10 + i}" for i, name in enumerate(names)}
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_namespaces("--net", script="while :; do sleep 60; done"))
        _ip(switch, "link add switch type bridge")
        _ip(switch, "link set switch up")
        made = []
        for name, address in addresses.items():
            made.append(stack.enter_context(_machine(at / name, name, addresses)))
            _ip(switch, f"link add {name} type veth peer name eth0 netns {made[-1].pid}")
            _ip(switch, f"link set {name} master switch up")
            for change in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip(made[-1].pid, change)
            _ip(made[-1].pid, f"route add default via {NETWORK}1")
        _authorise(at, made)
        yield made


def lacking() -> str | None:
    """What this machine lacks to make others, None if nothing."""
    if os.geteuid() != 0:
        return "root"
    return next((tool for tool in ("ip", "nsenter", "rsync", "ssh", "/usr/sbin/sshd") if not shutil.which(tool)), None)


def until(condition: Callable[[], object], what: str, timeout_s: float = 300) -> None:
    """Wait until ``condition`` holds; fail with ``what`` was waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def install(machine: Machine) -> None:
    """What ``launch/setup.sh`` would install in ``~/bot_dist`` there, without a network: it then finds it done."""
    clone = machine.home / "bot_dist"
    venv = clone / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    shared = VENV / packages.relative_to(venv)
    (packages / "shared.pth").write_text(f"{clone}\nimport site; site.addsitedir({str(shared)!r})\n")
    script = (VENV / "bin/ray").read_text()
    (venv / "bin/ray").write_text(f"#!{venv}/bin/python\n{script.partition(chr(10))[2]}")
    (venv / "bin/ray").chmod(0o755)
    setup = (ROOT / "launch/setup.sh").read_text()
    pins = setup[setup.index("pins=") : setup.index("for stamp in")].replace("<(pwd)", "-") + 'echo "$wanted"'
    stamp = subprocess.run(["bash", "-c", pins], cwd=ROOT, input=f"{clone}\n", capture_output=True, text=True).stdout
    (venv / "installed-gguf").write_text(stamp)


@contextlib.contextmanager
def _machine(at: Path, name: str, addresses: Mapping[str, str]) -> Iterator[Machine]:
    home = at / "home"
    kept = [path for path in (at.parent, ROOT, Path(sys.base_prefix)) if path.is_relative_to("/tmp")]
    keep = "".join(f"mount --rbind {path} {at}{path}\n" for path in kept)
    for folder in (home, at / "tmp", *(Path(f"{at}{path}") for path in kept)):
        folder.mkdir(parents=True, exist_ok=True)
    (home / ".bashrc").touch()
    (at / "cpus").write_text(f"0-{CPUS - 1}\n")
    (at / "hosts").write_text("".join(f"{a} {n}\n" for n, a in {"localhost": "127.0.0.1", **addresses}.items()))
    (at / "passwd").write_text(ACCOUNTS.format(home=home))
    (at / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
    (at / "nsswitch.conf").write_text("passwd: files\nshadow: files\nhosts: files\n")
    kinds = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--uts", "--ipc")
    with _namespaces(*kinds, script=f"set -e{START.format(at=at, keep=keep, name=name)}") as outer:
        until((at / "up").exists, f"machine {name}")
        pid = int(Path(f"/proc/{outer}/task/{outer}/children").read_text())
        yield Machine(name=name, address=addresses[name], home=home, pid=pid)


@contextlib.contextmanager
def _namespaces(*kinds: str, script: str) -> Iterator[int]:
    process = subprocess.Popen(["unshare", *kinds, "bash", "-c", script], start_new_session=True)
    try:
        until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a namespace")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _ip(pid: int, change: str) -> None:
    subprocess.run(["nsenter", f"--target={pid}", "--net", "ip", *change.split()], check=True)


def _authorise(at: Path, made: list[Machine]) -> None:
    """One key of all machines for all machines, and their ssh servers."""
    key = at / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key], check=True)
    (at / "sshd_config").write_text(SSHD.format(key=key))
    for machine in made:
        folder = machine.home / ".ssh"
        folder.mkdir(mode=0o700)
        shutil.copy(key, folder)
        shutil.copy(key.with_suffix(".pub"), folder / "authorized_keys")
        (folder / "config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n")
        machine.start("/usr/sbin/sshd", "-D", "-e", "-f", at / "sshd_config", log=at / f"{machine.name}-sshd.log")
    for machine in made:
        until(functools.partial(_answers, machine), f"the ssh server of {machine.name}")


def _answers(machine: Machine) -> bool:
    return machine.run("ssh", machine.address, "true").returncode == 0
