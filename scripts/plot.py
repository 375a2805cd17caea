"""Learning curves as pictures: of one run, and of several seeds and methods side by side."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.files import atomically
from rheo.stats import middle95

SAMPLES = 1000  # of the bootstrap
POINTS = 60  # of a curve


class Curve(NamedTuple):
    """The evaluations of one run, in order."""

    frames: NDArray  # [E]
    minutes: NDArray  # [E] of training
    values: list[NDArray]  # E times [episodes]


def plot(folder: Path, rows: list[dict[str, Any]]) -> Path | None:
    """Writes a run's curve.png: evaluation return with its interval over steps, else the loss.

    None when the run has no evaluation to show.
    """
    returns = [row for row in rows if row.get("eval/return") is not None]
    losses = [row for row in rows if row.get("val/loss") is not None]
    if not returns and not losses:
        return None
    plt = pyplot()
    margins = {
        "left": 0.14,
        "right": 0.97,
        "bottom": 0.13,
        "top": 0.92,
    }  # finding them takes longer
    figure, axes = plt.subplots(figsize=(6, 4), gridspec_kw=margins)
    if returns:
        sides = (column(returns, f"eval/return_{side}") for side in ("low", "high"))
        steps = column(returns, "step")
        axes.fill_between(steps, *sides, alpha=0.25, label="95 % interval over episodes")
        axes.plot(steps, column(returns, "eval/return"), label="evaluation")
        training = [row for row in rows if "env/return" in row]
        axes.plot(
            column(training, "step"),
            column(training, "env/return"),
            linewidth=0.8,
            label="training episodes",
        )
        axes.set(xlabel="environment frames", ylabel="return")
    else:
        axes.plot(column(losses, "step"), column(losses, "val/loss"), label="held out")
        axes.set(xlabel="updates", ylabel="matching loss", yscale="log")
    axes.set_title(folder.name, y=1.0)  # else its place is searched for
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    file = folder / "curve.png"
    quick = {"dpi": 150, "format": "png", "pil_kwargs": {"compress_level": 1}}
    atomically(file, lambda part: figure.savefig(part, **quick))
    plt.close(figure)
    return file


def column(rows: list[dict[str, Any]], key: str) -> NDArray:
    """A key of all rows; NaN, which is not drawn, where one has none."""
    return np.array([row.get(key) for row in rows], float)


def plot_curves(panels: dict[str, dict[str, list[Curve]]], metric: str, file: Path) -> None:
    """Writes a picture of panels[environment][method] = seeds, over frames and over minutes.

    Lines are means over the seeds, bands `band`s. A line ends where its shortest seed does.
    Raises Unwritten, and ValueError for an ending that is no picture's.
    """
    plt = pyplot()
    methods = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    size = 4 * len(panels), 6.4
    figure, grid = plt.subplots(2, len(panels), figsize=size, squeeze=False, layout="constrained")
    for column, (env, panel) in zip(grid.T, panels.items(), strict=True):
        for axes, which in zip(column, ("frames", "minutes"), strict=True):
            for name, curves in panel.items():
                x, middle, low, high = band(curves, which)
                color = f"C{methods.index(name)}"
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(x, middle, color=color, label=name)
            label = "environment frames" if which == "frames" else "minutes of training"
            axes.set(xlabel=label, title=env if which == "frames" else None)
            axes.grid(alpha=0.3)
        column[0].ticklabel_format(axis="x", scilimits=(0, 0))
        column[0].legend(frameon=False)
    for axes in grid[:, 0]:
        axes.set_ylabel(metric)
    kind = file.suffix[1:] or "png"
    atomically(file, lambda part: figure.savefig(part, dpi=90, format=kind))
    plt.close(figure)


def band(curves: list[Curve], which: str) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Points, mean over seeds, and its 95 % bootstrap interval over seeds and their episodes.

    Between two evaluations of a seed its curve is a line.
    """
    places = [getattr(curve, which) for curve in curves]
    x = np.linspace(max(place[0] for place in places), min(place[-1] for place in places), POINTS)
    rng = np.random.default_rng(0)
    lines, drawn = [], []
    for place, curve in zip(places, curves, strict=True):
        lines.append(np.interp(x, place, [values.mean() for values in curve.values]))
        means = [rng.choice(v, (SAMPLES, len(v))).mean(1) for v in curve.values]
        drawn.append([np.interp(x, place, row) for row in np.array(means).T])
    chosen = rng.integers(len(curves), size=(SAMPLES, len(curves)))
    draws = np.array(drawn)[chosen, np.arange(SAMPLES)[:, None]].mean(1)
    low, high = middle95(draws)
    return x, np.mean(lines, 0), low, high


def pyplot() -> Any:
    """matplotlib without a screen; imported late, it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
