"""Returns of several runs in one figure: `python -m dreamer plot RUN ...`. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from dreamer.checkpoint import read_log


def plot_returns(runs: Sequence[Path], target: Path) -> None:
    """Draw the returns of runs, by their folders, against environment steps: thick the greedy
    evaluations, thin behind them the training episodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(runs):
        kinds = (read_log(run / "log.jsonl", kind) for kind in ("episode", "eval"))
        episodes, evals = ([[row[x] for row in rows] for x in ("step", "return")] for rows in kinds)
        name = "/".join(run.absolute().parts[-2:])
        axes.plot(*episodes, color=f"C{i}", linewidth=0.7, alpha=0.35)
        axes.plot(*evals, color=f"C{i}", marker="o", markersize=3, label=name)
    axes.set(xlabel="environment steps", ylabel="return (thin: training episodes)")
    axes.grid(alpha=0.3)
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
