"""Pictures of a run."""

from __future__ import annotations

import io
from typing import Any

_COLOURS = {"transferred": "#0b6e99", "scratch": "#b35c00", "source": "#555555"}


def loss_curves(runs: list[dict[str, Any]]) -> bytes:
    """Training loss (thin) and held-out loss (marked) of every run over optimizer steps, as a PNG; the source's
    held-out loss is a line across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    plot = figure.subplots()
    for run in runs:
        colour = _COLOURS[run["name"]]
        held_out = run["held_out"]
        if run["steps"] == 0 and len(runs) > 1:
            loss = held_out[0]["loss"]
            plot.axhline(loss, color=colour, linestyle=":", label=f"{run['name']}, held out: {loss:.3f}")
            continue
        plot.plot([s["step"] - 1 for s in run["losses"]], [s["loss"] for s in run["losses"]], color=colour, alpha=0.45)
        plot.plot(
            [h["step"] for h in held_out],
            [h["loss"] for h in held_out],
            color=colour,
            marker="o",
            label=f"{run['name']}, held out: {held_out[0]['loss']:.3f} → {held_out[-1]['loss']:.3f}",
        )
    plot.set_xlabel("optimizer step")
    plot.set_ylabel("loss, nats per token")
    plot.grid(alpha=0.3)
    plot.legend()
    return _png(figure)


def energy_bars(energy_kept: dict[str, float]) -> bytes:
    """Share of each module's squared norm that the approximation band keeps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.28 * len(energy_kept)), layout="constrained")
    plot = figure.subplots()
    names = list(energy_kept)[::-1]
    shares = [energy_kept[name] for name in names]
    plot.barh(names, shares, color=_COLOURS["transferred"])
    for i, share in enumerate(shares):
        plot.text(share, i, f" {share:.1%}", va="center")
    plot.set_xlim(0, 1.12)
    plot.set_xlabel("energy kept in the approximation band")
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
