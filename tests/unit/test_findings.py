"""The scripts of findings/ can be run and understood alone; what they show is checked by running them, not here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "findings").glob("*.sh"))
INSTALL = re.compile(r'(?:/pip" install|\{pip\[@\]\}")(.*)')  # what pip is told, or what an array that runs it is


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_finding_parses_pins_its_packages_and_says_what_it_shows(path: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert os.access(path, os.X_OK), "chmod +x it"
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    start = lines.index("set -euo pipefail")
    assert all(line.startswith("#") for line in lines[:start])
    for part in ("Where:", "Expected:", "Seen", f"Run: bash findings/{path.name}"):
        assert any(line.startswith(f"# {part}") for line in lines[:start]), f"no '{part}' in the head"
    told = [found[1] for line in lines[start:] if not line.startswith("pip=") and (found := INSTALL.search(line))]
    assert told
    for words in told:
        packages = re.findall(r"(?<= )\"?([a-z][^ \"]*)(?=\"? |\"?$)", words)
        unpinned = [word for word in packages if "==" not in word and not word.startswith("https:")]
        assert not unpinned, f"install exact versions: {unpinned}"
