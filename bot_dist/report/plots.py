"""Pictures of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from bot_dist.report.shrinking import Stages, losses, prediction_errors, spectrum

_COLOURS = {"transferred": "#2a86c0", "scratch": "#cf6f16", "source": "#808080"}
_INK = "#7a7a7a"
"""Colour of texts and axes. Pictures are transparent, and all their colours can be read on a light page and on a dark
one."""

_LINES = {"transferred": ("-", "o"), "scratch": ("--", "s")}
"""Line and marker of each run, so that no curve is told by its colour alone."""
_MARKERS = "osD^v<>PX*"


def loss_curves(runs: list[dict[str, Any]]) -> bytes:
    """Training loss (thin) and held-out loss (marked, its first and last value beside it) of every run over optimizer
    steps, as a PNG; the source's held-out loss is a line across."""
    from matplotlib.figure import Figure

    images = runs[0]["held_out"][0]["accuracy"] is not None

    figure = Figure(figsize=(6.2, 4), layout="constrained")
    plot = figure.subplots()
    for run in runs:
        colour = _COLOURS[run["name"]]
        held_out = [(h["step"], h["loss"]) for h in run["held_out"]]
        if run["steps"] == 0 and len(runs) > 1:
            plot.axhline(held_out[0][1], color=colour, linestyle=":", label=f"{run['name']}: {held_out[0][1]:.3f}")
            continue
        line, marker = _LINES[run["name"]]
        plot.plot(
            [s["step"] - 1 for s in run["losses"]],
            [s["loss"] for s in run["losses"]],
            color=colour,
            linestyle=line,
            linewidth=1,
            alpha=0.5,
        )
        plot.plot(*zip(*held_out, strict=True), color=colour, linestyle=line, marker=marker, label=run["name"])
        for at in {held_out[0], held_out[-1]}:
            plot.annotate(f"{at[1]:.3f}", at, xytext=(0, 7), textcoords="offset points", ha="center")
    plot.margins(0.08)
    plot.set_xlabel("optimizer step")
    plot.set_ylabel(f"loss, nats per {'image' if images else 'token'} (marked: held out)")
    plot.grid(alpha=0.3)
    plot.legend()
    return _png(figure)


def comparison_curves(results: Sequence[Mapping[str, Any]], source_loss: float, *, per: str = "token") -> bytes:
    """Held-out losses (``per`` token or image) of all trainings of a comparison over optimizer steps, as a PNG: a
    colour and a marker per method, dashed from scratch; what the source has is a line across."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    plot = figure.subplots()
    methods = list(dict.fromkeys(result["method"] for result in results))
    for result in results:
        index, curve = methods.index(result["method"]), result["curve"]
        plot.plot(
            curve["steps"],
            curve["losses"],
            color=colormaps["tab20"](index % 20),
            linestyle="--" if result["scratch"] else "-",
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            markevery=0.1,
            label=result["method"] if result["seed"] == results[0]["seed"] else None,
        )
    plot.axhline(source_loss, color=_COLOURS["source"], linestyle=":", label=f"the source: {source_loss:.3f}")
    if starts := [loss for result in results if not result["scratch"] for loss in result["curve"]["losses"][:1]]:
        plot.set_ylim(top=max(starts) + 0.05 * (max(starts) - source_loss))
    plot.set_xlabel("optimizer step")
    plot.set_ylabel(f"held-out loss, nats per {per}")
    plot.grid(alpha=0.3)
    plot.legend(fontsize="small")
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


def shrinking(stages: Stages) -> bytes | None:
    """How a model was shrunk, as a PNG: the spectrum of the residual stream with the cut, the share that stays
    unexplained in each block, the held-out loss after each stage; each where there is such a thing, and None where
    there is none of them."""
    from matplotlib.figure import Figure

    every = ((_spectrum, spectrum), (_errors, prediction_errors), (_losses, losses))
    panels = [draw for draw, shown in every if shown(stages)]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for plot, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(plot, stages)
        plot.grid(alpha=0.3)
    return _png(figure)


def _spectrum(plot: Any, stages: Stages) -> None:
    energies = spectrum(stages)
    assert energies is not None
    shares, kept = energies
    plot.semilogy(range(1, len(shares) + 1), shares, color=_COLOURS["transferred"])
    label = f"kept: {kept} of {len(shares)}, {sum(shares[:kept]):.1%} of the energy"
    plot.axvline(kept + 0.5, color=_COLOURS["scratch"], linestyle="--", label=label)
    plot.set_xlabel("coordinate of the residual width")
    plot.set_ylabel("share of the energy")
    plot.legend(fontsize="small")


def _errors(plot: Any, stages: Stages) -> None:
    for name, errors in prediction_errors(stages).items():
        if len(errors) > 1:
            plot.plot(errors, marker=".", label=name)
        else:
            plot.axhline(errors[0], linestyle=":", color=_COLOURS["source"], label=name)
    plot.set_ylim(bottom=0)
    plot.xaxis.get_major_locator().set_params(integer=True)
    plot.set_xlabel("block")
    plot.set_ylabel("share that stays unexplained")
    plot.legend(fontsize="small")


def _losses(plot: Any, stages: Stages) -> None:
    names, values = zip(*losses(stages), strict=True)
    plot.plot(names, values, marker="o", color=_COLOURS["transferred"])
    for i, value in enumerate(values):
        plot.annotate(f"{value:.3f}", (i, value), xytext=(0, 5), textcoords="offset points", ha="center")
    plot.margins(0.15)
    plot.set_xlabel("after the stage")
    plot.set_ylabel("held-out loss, nats per token")


def _png(figure: Any) -> bytes:
    from matplotlib.text import Text

    for plot in figure.axes:
        plot.tick_params(which="both", colors=_INK)
        plot.spines[:].set_color(_INK)
        plot.patch.set_alpha(0)
        if (legend := plot.get_legend()) is not None:
            legend.get_frame().set_alpha(0)
    for text in figure.findobj(Text):
        text.set_color(_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True)
    return buffer.getvalue()
