"""The learning curve of a run as a picture."""

from pathlib import Path

from .run import Run


def plot(run: Run) -> Path | None:
    """Writes curve.png: evaluation return with its 95 % interval over steps, else the loss.

    None when the run has no evaluation to show.
    """
    rows = run.rows()
    returns = [row for row in rows if "eval/return" in row]
    losses = [row for row in rows if "val/loss" in row]
    if not returns and not losses:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    if returns:
        steps = [row["step"] for row in returns]
        low, high = ([row[f"eval/return_{side}"] for row in returns] for side in ("low", "high"))
        axes.fill_between(steps, low, high, alpha=0.25, label="95 % interval over episodes")
        axes.plot(steps, [row["eval/return"] for row in returns], label="evaluation")
        training = [row for row in rows if "env/return" in row]
        axes.plot(
            [row["step"] for row in training],
            [row["env/return"] for row in training],
            linewidth=0.8,
            label="training episodes",
        )
        axes.set(xlabel="environment frames", ylabel="return")
    else:
        axes.plot(
            [row["step"] for row in losses], [row["val/loss"] for row in losses], label="held out"
        )
        axes.set(xlabel="updates", ylabel="matching loss", yscale="log")
    axes.set_title(run.path.name)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    file = run.path / "curve.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
