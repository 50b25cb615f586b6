"""Every figure of the project.

Figures are made with `matplotlib.figure.Figure` alone: no window, no global state, and nothing
to close. Each role has one colour everywhere (the Okabe-Ito palette, which colour-blind readers
can tell apart): what is real is black, what is dreamed blue, the naive guess orange.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from dreamer.checkpoint import write_atomic
from dreamer.evaluation import Episode
from lab.stats import bootstrap_interval, iqm

REAL, DREAM, NAIVE = "black", "#0072B2", "#E69F00"
THRESHOLD, RANDOM, EXTRA = "#009E73", "#777777", "#CC79A7"
END = "P(the episode goes on)"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "legend.framealpha": 0.8,
    "lines.linewidth": 1.5,
}
OBS_NAMES = {  # of each dimension, with its unit where it has one
    "CartPole-v1": ["cart position", "cart velocity", "pole angle (rad)", "pole velocity (rad/s)"],
    "Pendulum-v1": ["cos(angle)", "sin(angle)", "angular velocity (rad/s)"],
    "Acrobot-v1": [
        "cos(angle 1)",
        "sin(angle 1)",
        "cos(angle 2)",
        "sin(angle 2)",
        "velocity 1 (rad/s)",
        "velocity 2 (rad/s)",
    ],
    "LunarLander-v3": [
        "x (scaled)",
        "y (scaled)",
        "x velocity (scaled)",
        "y velocity (scaled)",
        "angle (rad)",
        "angular velocity (scaled)",
        "left leg touches",
        "right leg touches",
    ],
}


# ---------------------------------------------------------------- shared pieces of the figures


def save(fig: Figure, path: Path | str) -> None:
    """Write a PNG, whole or not at all; makes the folder. Where that cannot be, only warns: the
    numbers are worth more than the picture, and it can be drawn again from them."""
    try:
        write_atomic(Path(path), lambda temporary: fig.savefig(temporary, format="png", dpi=150))
    except OSError as error:
        warnings.warn(f"figure not saved: {error}", stacklevel=2)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean over `width` points, fewer at the ends: (..., T) -> (..., T)."""
    kernel = np.ones(min(width, values.shape[-1]))
    total = np.apply_along_axis(np.convolve, -1, values, kernel, "same")
    return total / np.convolve(np.ones(values.shape[-1]), kernel, "same")


def seed_curves(curves: Sequence[tuple[Sequence[float], Sequence[float]]]):
    """Curves (x, y) of several seeds on one grid: (grid (G,), values (seeds, G)).

    Between its points a curve is a straight line; outside them it is NaN.
    """
    grid = np.unique(np.concatenate([np.asarray(x, float) for x, _ in curves]))
    values = [np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in curves]
    return grid, np.array(values)


def draw_seeds(ax: Axes, runs: list[dict], kind: str, key: str, color: str, label: str) -> None:
    """One logged quantity: mean over the seeds, with a band from the smallest to the largest.

    Reports are of single updates and noisy: they are smoothed; evaluations are not.
    """
    curves = []
    for run in runs:
        rows = [r for r in run.get("diagnostics", []) if r["kind"] == kind and key in r]
        if rows:
            x, y = np.array([[r["step"], r[key]] for r in rows]).T
            curves.append((x, smooth(y) if kind == "report" else y))
    if not curves:
        return
    grid, values = seed_curves(curves)
    ax.plot(grid, np.nanmean(values, 0), color=color, label=label)
    if len(curves) > 1:
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
        ax.fill_between(grid, low, high, color=color, alpha=0.2, lw=0)


def finish(ax: Axes, title: str, xlabel: str, ylabel: str = "", legend: bool = True) -> None:
    """Title and labels; a panel without data says so."""
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if not ax.has_data():
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
    elif legend and ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best")
    if xlabel in ("environment steps", "update"):
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2000 is written 2k
    elif "step" in xlabel:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


# ---------------------------------------------------------------- training


@matplotlib.rc_context(STYLE)
def training_figure(
    task_title: str,
    runs: list[dict[str, Any]],
    threshold: float,
    random_return: float,
    path: Path | str,
) -> None:
    """Did it learn, and if not, where is it wrong?

    runs: those of `assets/results/<task>.json`, one per seed, each with `curve` {env_steps,
    return} (greedy evaluations) and, where recorded, `train_returns` ([step, return] of training
    episodes), `final_returns`, `env_steps` and `diagnostics`, the log's report and eval rows.
    """
    fig = Figure(figsize=(10, 9.5), layout="constrained")
    grid = fig.add_gridspec(3, 3, height_ratios=[1.5, 1, 1])
    draw_returns(fig.add_subplot(grid[0, :]), task_title, runs, threshold, random_return)
    ax = [fig.add_subplot(grid[i, j]) for i in (1, 2) for j in range(3)]
    steps = "environment steps"

    draw_losses(ax[0], runs)
    finish(ax[0], "world model: losses", steps, "nats or squared error", legend=False)
    draw_seeds(ax[1], runs, "report", "entropy", DREAM, "entropy")
    finish(ax[1], "policy: entropy in dreams", steps, "nats", legend=False)
    draw_seeds(ax[2], runs, "report", "ret_scale", DREAM, "scale")
    finish(ax[2], "return scale S = max(1, P95 - P5)", steps, "return", legend=False)

    draw_seeds(ax[3], runs, "eval", "value_real", REAL, "achieved")
    draw_seeds(ax[3], runs, "eval", "value_pred", DREAM, "critic says")
    finish(ax[3], "critic: value against achieved return", steps, "mean discounted return")
    draw_seeds(ax[4], runs, "eval", "value_corr", DREAM, "correlation")
    ax[4].set_ylim(-1.05, 1.05)
    finish(ax[4], "critic: correlation with achieved return", steps, "over states", legend=False)
    draw_seeds(ax[5], runs, "eval", "naive_obs_error", NAIVE, "last observation repeated")
    draw_seeds(ax[5], runs, "eval", "dream_obs_error", DREAM, "dream")
    finish(ax[5], "dream: error on replayed windows", steps, "mean |error|, normalised")
    if ax[5].has_data():
        ax[5].set_ylim(bottom=0)
    if len(runs) > 1:
        fig.supxlabel("lines: mean over seeds; bands: lowest to highest seed", fontsize=8.5)
    save(fig, path)


def draw_returns(
    ax: Axes, task_title: str, runs: list[dict], threshold: float, random_return: float
) -> None:
    """Return against environment steps: every seed, their mean and range, what to beat, and the
    episodes that were learned from, but for a few far below the random policy's."""
    n = len(runs)
    bottom = random_return - abs(threshold - random_return)
    trained = [point for run in runs for point in run.get("train_returns", [])]
    if shown := [point for point in trained if point[1] > bottom]:
        lower = len(trained) - len(shown)
        label = f"training episodes{f' ({lower} are lower)' if lower else ''}"
        ax.scatter(*zip(*shown, strict=True), color=RANDOM, s=5, alpha=0.4, lw=0, label=label)
    curves = [(run["curve"]["env_steps"], run["curve"]["return"]) for run in runs]
    curves = [curve for curve in curves if len(curve[0])]
    if curves:
        grid, values = seed_curves(curves)
        if n > 1:
            for i, row in enumerate(values):
                label = "one seed" if i == 0 else None
                ax.plot(grid, row, color=DREAM, lw=0.7, alpha=0.6, label=label)
            low, high = np.nanmin(values, 0), np.nanmax(values, 0)
            ax.fill_between(
                grid, low, high, color=DREAM, alpha=0.15, lw=0, label="lowest to highest"
            )
        label = f"mean of {n} seeds" if n > 1 else f"seed {runs[0]['seed']}"
        ax.plot(grid, np.nanmean(values, 0), color=DREAM, lw=2.5, label=label)
    finals = [(r["env_steps"], np.mean(r["final_returns"])) for r in runs if r.get("final_returns")]
    if finals:
        count = len(runs[0]["final_returns"])
        mean = np.mean([m for _, m in finals])
        label = f"final {count} fresh episodes (mean {mean:.1f})"
        ax.scatter(*zip(*finals, strict=True), color=REAL, marker="D", s=24, zorder=3, label=label)
    ax.axhline(threshold, color=THRESHOLD, ls="--", label=f"threshold {threshold:g}")
    ax.axhline(random_return, color=RANDOM, ls=":", label=f"random policy {random_return:.0f}")
    seeds = f"{n} seeds" if n > 1 else "1 seed"
    finish(
        ax, f"{task_title}: greedy return while learning, {seeds}", "environment steps", "return"
    )
    ax.title.set_fontsize(12)


def draw_losses(ax: Axes, runs: list[dict]) -> None:
    """The five parts of the world model's loss, on a logarithmic axis."""
    colors = {"obs": REAL, "reward": NAIVE, "cont": THRESHOLD, "dyn": DREAM, "rep": EXTRA}
    for name, color in colors.items():
        draw_seeds(ax, runs, "report", f"{name}_loss", color, name)
    for line in ax.lines:
        if line.get_label() == "rep":  # the same number as dyn, with other gradients
            line.set_linestyle("--")
    if ax.has_data():
        ax.set_yscale("log")
        bottom, top = ax.get_ylim()
        ax.set_ylim(top=top * (top / bottom) ** 0.35)  # room for the legend
        ax.legend(loc="upper right", ncols=3)


# ---------------------------------------------------------------- methods compared


class Method(NamedTuple):
    """How a method is called and drawn, in every panel alike."""

    name: str
    color: str
    marker: str


METHODS = {
    "dreamer": Method("Dreamer", DREAM, "D"),
    "ppo": Method("PPO", "#D55E00", "o"),
    "dqn": Method("DQN", EXTRA, "s"),
    "sac": Method("SAC", NAIVE, "^"),
}


@matplotlib.rc_context(STYLE | {"font.size": 10, "axes.titlesize": 11})
def sample_efficiency_figure(
    tasks: dict[str, dict[str, dict[str, Any] | None]], path: Path | str
) -> None:
    """Greedy return against environment steps, a panel for each of up to four tasks.

    tasks: task -> method (of `METHODS`) -> its results file, or None where nothing has been
    measured, which the panel then says; "dreamer" is there for every task. Lines are
    interquartile means over seeds, bands their 95% bootstrap intervals.
    """
    fig = Figure(figsize=(10, 8), layout="constrained")
    axes = list(fig.subplots(2, 2).flat)
    for ax, methods in zip(axes, tasks.values(), strict=False):
        draw_methods(ax, methods)
    for ax in axes[len(tasks) :]:
        ax.set_axis_off()
    fig.supxlabel(
        "lines: interquartile mean over seeds of the mean of 20 greedy episodes; bands: its 95% "
        "bootstrap interval, too narrow for 5 seeds\nwhat lies far below chance is cut off",
        fontsize=8.5,
    )
    save(fig, path)


def draw_methods(ax: Axes, methods: dict[str, dict[str, Any] | None]) -> None:
    """One task's panel."""
    ours = methods["dreamer"]
    ax.set_xscale("log")
    for method, data in methods.items():
        name, color, marker = METHODS[method]
        if data is None:
            ax.plot([], [], color=color, marker=marker, ms=4, label=f"{name}: not measured yet")
            continue
        steps, returns = same_steps(data["runs"])
        count = f"{len(returns)} seed{'s' if len(returns) > 1 else ''}"
        look = {"color": color, "marker": marker, "ms": 4, "zorder": 3 if data is ours else 2}
        ax.plot(steps, iqm(returns), **look, label=f"{name}, {count}")
        if len(returns) > 1:
            low, high = bootstrap_interval(returns)
            ax.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
    threshold, random = ours["threshold"], ours["random_return"]
    ax.axhline(threshold, color=THRESHOLD, ls="--", label=f"threshold {threshold:g}")
    ax.axhline(random, color=RANDOM, ls=":", label=f"random policy {random:.0f}")
    # Far below chance nothing is told apart any more.
    ax.set_ylim(bottom=max(ax.get_ylim()[0], random - (threshold - random) / 2))
    ax.xaxis.set_minor_formatter(NullFormatter())
    finish(ax, ours["env_id"], "environment steps", "greedy return", legend=False)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    ax.legend(**below, ncols=2, frameon=False)


def same_steps(runs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (E,) at which all runs were evaluated, and their returns there (runs, E)."""
    curves = [
        dict(zip(run["curve"]["env_steps"], run["curve"]["return"], strict=True)) for run in runs
    ]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])


# ---------------------------------------------------------------- dreams against reality


@matplotlib.rc_context(STYLE)
def world_model_figure(
    title: str,
    reports: list[dict[str, Any]],
    error: dict[str, np.ndarray],
    ends: dict[str, np.ndarray],
    path: Path | str,
) -> None:
    """What a world model knows: losses, error against dream length, rewards and continues.

    reports: rows with step, obs_loss, reward_loss, cont_loss, dyn_loss and rep_loss.
    error: `dream` and `naive` (N, H), absolute errors at each dream length, NaN after the
    episode's end. ends: `reward` and `cont`, each a dict of `real`, `filtered` and `dreamed`
    (N, K), of the last K rows of episodes.
    """
    fig = Figure(figsize=(10, 7), layout="constrained")
    ax = fig.subplots(2, 2).flat
    fig.suptitle(title, fontsize=12)

    draw_losses(ax[0], [{"diagnostics": reports}])
    finish(ax[0], "losses while learning", "update", "nats or squared error", legend=False)

    length = np.arange(1, error["dream"].shape[1] + 1)
    for name, color, label in (
        ("naive", NAIVE, "last observation repeated"),
        ("dream", DREAM, "dream: the prior alone"),
    ):
        draw_band(ax[1], length, error[name], color, label)
    ax[1].set_ylim(bottom=0)
    finish(
        ax[1],
        "error against length of the dream",
        "steps since the last observation",
        "|error| / spread of the data",
    )

    for axis, name, title, ylabel in (
        (ax[2], "reward", "reward just before the end", "reward"),
        (ax[3], "cont", "does it see the end coming?", END),
    ):
        real, filtered, dreamed = (ends[name][kind] for kind in ("real", "filtered", "dreamed"))
        before = np.arange(1 - real.shape[1], 1)
        draw_band(axis, before, dreamed, DREAM, "dreamed")
        axis.plot(before, np.mean(filtered, 0), color=EXTRA, ls="--", label="with observations")
        axis.plot(before, np.mean(real, 0), color=REAL, ls=":", lw=2, label="real")
        axis.set_ylim(-0.1, 1.1 * max(1.0, real.max()))
        finish(axis, title, "steps relative to the episode's end", ylabel)
    save(fig, path)


def draw_band(ax: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """Mean of samples (N, X), NaN ignored, with the band that holds the middle 80% of them."""
    low, high = np.nanpercentile(values, [10, 90], axis=0)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    ax.plot(x, np.nanmean(values, 0), color=color, label=label)


@matplotlib.rc_context(STYLE)
def dream_figure(
    title: str,
    names: Sequence[str],
    context: int,
    real: Episode,
    dreams: Episode,
    path: Path | str,
    scatter: tuple[np.ndarray, np.ndarray] | None = None,
    step: str = "environment step",
) -> None:
    """Imagined against real, one panel per observation dimension, for reward and for continue.

    names: of the O dimensions. real: rows 0..T-1 of an episode, obs (T, O), reward (T,), cont
    (T,); dreams: K dreams of rows context..T-1, obs (K, T - context, O) and so on. scatter: real
    and dreamed rewards (M,) of many other dreams, for a panel of their own. step: what a row is.
    """
    panels = [(name, real["obs"][:, i], dreams["obs"][..., i]) for i, name in enumerate(names)]
    reward = np.concatenate([[np.nan], real["reward"][1:]])  # a first row has none
    panels.append(("reward", reward, dreams["reward"]))
    panels.append((END, real["cont"], dreams["cont"]))
    total = len(panels) + (scatter is not None)
    columns = 3 if total <= 6 or total == 9 else 4
    rows = math.ceil(total / columns)
    fig = Figure(figsize=(10, 2.3 * rows + 0.8), layout="constrained")
    fig.suptitle(title, fontsize=12)
    axes = list(fig.subplots(rows, columns).flat)

    steps = np.arange(len(real["obs"]))
    for ax, (name, truth, dreamed) in zip(axes, panels, strict=False):
        ax.axvspan(0, context - 1, color=RANDOM, alpha=0.2, lw=0, label="observed")
        ax.plot(steps, truth, color=REAL, label="real")
        if name in names:
            last = np.full(len(steps) - context, truth[context - 1])
            ax.plot(steps[context:], last, color=NAIVE, ls="--", label="last observation repeated")
        low, high = np.percentile(dreamed, [10, 90], axis=0)
        label = f"{len(dreamed)} dreams: middle 80%"
        ax.fill_between(steps[context:], low, high, color=DREAM, alpha=0.25, lw=0, label=label)
        ax.plot(steps[context:], dreamed.mean(0), color=DREAM, label="mean of the dreams")
        if name == "reward":
            values = np.concatenate([truth[1:], low, high])
            margin = max(0.2, 0.1 * np.ptp(values))
            ax.set_ylim(values.min() - margin, values.max() + margin)
        elif name == END:
            ax.set_ylim(-0.05, 1.05)
        else:  # do not blow up what hardly moves
            bottom, top = ax.get_ylim()
            margin = max(0.0, 0.05 - (top - bottom) / 2)
            ax.set_ylim(bottom - margin, top + margin)
        finish(ax, name, step, legend=False)
    if scatter is not None:
        draw_reward_scatter(axes[len(panels)], *scatter)
    for ax in axes[total:]:
        ax.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    save(fig, path)


def draw_reward_scatter(ax: Axes, real: np.ndarray, dreamed: np.ndarray) -> None:
    """Dreamed against real reward (M,), with the diagonal and the mean error."""
    low, high = min(real.min(), dreamed.min()), max(real.max(), dreamed.max())
    margin = max(0.2, 0.05 * (high - low))
    ends = [low - margin, high + margin]
    ax.plot(ends, ends, color=REAL, lw=0.8, ls=":")
    ax.scatter(real, dreamed, s=5, color=DREAM, alpha=0.4, lw=0)
    ax.set(xlim=ends, ylim=ends)
    error = f"mean |error| {np.abs(real - dreamed).mean():.2g}"
    ax.text(0.03, 0.97, error, va="top", transform=ax.transAxes)
    finish(ax, f"reward, {len(real):,} dreamed steps", "real", "dreamed", legend=False)


# ---------------------------------------------------------------- latents


@matplotlib.rc_context(STYLE)
def latents_figure(
    title: str,
    points: np.ndarray,
    colourings: Sequence[tuple[str, np.ndarray, str]],
    path: Path | str,
) -> None:
    """Where the model's states lie: a map of them (M, 2), drawn once for each colouring.

    colourings: (name with unit, values (M,), colour map); the map "coolwarm" is centred on 0. A
    quantity that is the same everywhere is said to be so; what lies beyond the middle 98% takes
    the outermost colour.
    """
    fig = Figure(figsize=(3.3 * len(colourings), 3.9), layout="constrained")
    fig.suptitle(title, fontsize=12)
    for ax, (name, values, cmap) in zip(fig.subplots(1, len(colourings)), colourings, strict=True):
        low, high = np.percentile(values, [1, 99])
        constant = np.ptp(values) < 1e-6
        if high - low < 1e-6:
            low, high = values.min() - 0.5, values.max() + 0.5
        if cmap == "coolwarm":
            high = max(-low, high)
            low = -high
        dots = ax.scatter(*points.T, c=values, cmap=cmap, vmin=low, vmax=high, s=7, lw=0)
        bar = fig.colorbar(dots, ax=ax, location="bottom", shrink=0.9, pad=0.03)
        if constant or len(np.unique(values)) == 2:
            bar.set_ticks(np.unique(values))
        ax.set(title=f"{name} (always {values[0]:g})" if constant else name, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    save(fig, path)


# ---------------------------------------------------------------- ablations


@matplotlib.rc_context(STYLE)
def ablation_figure(
    ideas: Sequence[str],
    tasks: Sequence[str],
    grid: dict[str, np.ndarray],
    path: Path | str,
) -> None:
    """What each idea buys: ideas downwards, tasks across, the effect of removing it in the cell.

    grid: `mean`, `low` and `high` (R, C) of the effects, NaN where there is no result; `seeds`
    (R, C), of how many seeds each is; `sign` (R, C), not 0 where the interval excludes 0, which
    is printed bold; `planned` (R, C) bool; `full` (C,), the full agent's scores. What is not
    planned is hatched, what is planned and has no result yet says so.
    """
    fig = Figure(figsize=(1.5 + 1.15 * len(tasks), 1.9 + 0.5 * len(ideas)), layout="constrained")
    ax = fig.subplots()
    picture = ax.imshow(grid["mean"], cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for row, column in np.ndindex(grid["mean"].shape):
        mean, low, high, seeds, sign = (
            grid[name][row, column] for name in ("mean", "low", "high", "seeds", "sign")
        )
        if not grid["planned"][row, column]:
            corner = column - 0.5, row - 0.5
            ax.add_patch(
                Rectangle(corner, 1, 1, facecolor="#eeeeee", edgecolor="#cccccc", hatch="///", lw=0)
            )
            continue
        text = "no result yet"
        if seeds:
            text = f"{mean:+.2f}\n{low:+.2f} to {high:+.2f}" if seeds > 1 else f"{mean:+.2f}"
            if seeds < 5:
                text += f"\n{seeds} seed{'s' if seeds > 1 else ''}"
        color = "white" if abs(mean) > 0.6 else "black"
        weight = "bold" if sign else "normal"
        ax.text(
            column, row, text, ha="center", va="center", color=color, weight=weight, fontsize=7.5
        )
    names = [
        textwrap.fill(task, 14) + (f"\n(full: {full:.2f})" if np.isfinite(full) else "")
        for task, full in zip(tasks, grid["full"], strict=True)
    ]
    ax.set_xticks(range(len(tasks)), names, fontsize=8)
    ax.set_yticks(range(len(ideas)), [f"without {idea}" for idea in ideas])
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.set_xticks(np.arange(len(tasks) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(ideas) - 1) + 0.5, minor=True)
    ax.tick_params(which="minor", length=0)
    ax.grid(False)
    ax.grid(which="minor", color="white", alpha=1, lw=2)
    ax.spines[:].set_visible(False)
    label = "change of the score (0: random policy, 1: threshold)"
    fig.colorbar(picture, ax=ax, pad=0.01, shrink=0.7, label=label)
    fig.suptitle(
        "What each idea buys: change of the mean return while learning, with its 95% interval",
        fontsize=12,
    )
    save(fig, path)


@matplotlib.rc_context(STYLE)
def ablation_dreams_figure(
    title: str,
    full: np.ndarray,
    others: dict[str, np.ndarray],
    guesses: dict[str, list[float]],
    path: Path | str,
) -> None:
    """Error of dreams against their length, a panel for each idea removed.

    full (seeds, H): the full agent's, in every panel; others: (seeds, H) of each variant, empty
    where there is no result yet; guesses: (H,) of each guess that needs no model. Lines are means
    over seeds, bands reach from the smallest to the largest.
    """
    columns = 4
    count = math.ceil(len(others) / columns)
    fig = Figure(figsize=(10, 2.2 * count + 0.9), layout="constrained")
    fig.suptitle(title, fontsize=12)
    axes = list(fig.subplots(count, columns, sharex=True, sharey=True, squeeze=False).flat)
    for ax, (name, errors) in zip(axes, others.items(), strict=False):
        note = "" if len(errors) else " (no result yet)"
        for values, color, label in ((full, REAL, "full agent"), (errors, DREAM, "without it")):
            if len(values):
                length = np.arange(1, values.shape[1] + 1)
                ax.fill_between(length, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
                ax.plot(length, values.mean(0), color=color, label=label)
        for (label, errors), color in zip(guesses.items(), (NAIVE, RANDOM), strict=True):
            ax.plot(np.arange(1, len(errors) + 1), errors, color=color, ls="--", label=label)
        finish(ax, f"without {name}{note}", "", legend=False)
        ax.set_ylim(bottom=0)
    for ax in axes[len(others) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(others) - columns) : len(others)]:  # those with nothing below them
        ax.set_xlabel("steps since the last observation")
        ax.tick_params(labelbottom=True)
    fig.supylabel("|error| / spread of the data", fontsize=9)
    handles = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if handles:
        fig.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    save(fig, path)


# ---------------------------------------------------------------- speed


STAGES = {  # of an update, as `python -m lab.benchmark` times them -> colour
    "world model": DREAM,
    "rollout": "#56B4E9",
    "heads": THRESHOLD,
    "actor": NAIVE,
    "critic": EXTRA,
    "backward": "#D55E00",
    "optimiser": "#F0E442",
    "other": RANDOM,
}


def benchmark_figures(data: dict[str, Any], assets: Path) -> None:
    """Both figures of what `lab.benchmark` measured, into a folder."""
    benchmark_breakdown_figure(data, assets / "benchmark_breakdown.png")
    benchmark_growth_figure(data, assets / "benchmark_growth.png")


@matplotlib.rc_context(STYLE)
def benchmark_breakdown_figure(data: dict[str, Any], path: Path | str) -> None:
    """Where the time of an eager update on one thread goes: a stacked bar for each shape.

    data: what `lab.benchmark` measured. A bar is 100% of its update's time; beside its name
    stands that time, inside each part the part's. The parts are timed one by one, which takes a
    little longer than the update as a whole. The dashed line is the floor: the time that the
    matrix products alone would take.
    """
    fig = Figure(figsize=(10, 3), layout="constrained")
    ax = fig.subplots()
    names = []
    for row, (shape, stages) in enumerate(data["stages_ms"].items()):
        total, left = sum(stages.values()), 0.0
        for stage, ms in stages.items():
            share = 100 * ms / total
            label = stage if row == 0 else None
            bar = ax.barh(row, share, left=left, height=0.6, color=STAGES[stage], label=label)
            if share > 3:
                ax.bar_label(bar, [f"{ms:.0f}\nms"], label_type="center", fontsize=7.5)
            left += share
        values = data["shapes"][shape]
        floor = values["floor_ms"]["1"] / total
        label = "floor: matrix products alone" if row == 0 else None
        ax.plot([100 * floor] * 2, [row - 0.4, row + 0.4], color=REAL, ls="--", label=label)
        names.append(f"{shape}\n{total:.0f} ms")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(False)
    finish(
        ax,
        "where the time of one update goes "
        f"(eager, one thread, parts timed one by one, {data['cpu']})",
        "% of the update's time",
        legend=False,
    )
    fig.legend(loc="outside lower center", ncols=9)
    save(fig, path)


@matplotlib.rc_context(STYLE)
def benchmark_growth_figure(data: dict[str, Any], path: Path | str) -> None:
    """Time of an update against batch, window, starts, horizon and width, each varied alone, and
    of drawing a batch against the rows held; both axes logarithmic.

    data: what `lab.benchmark` measured.
    """
    fig = Figure(figsize=(10, 4), layout="constrained")
    left, right = fig.subplots(1, 2)
    colors = (DREAM, THRESHOLD, NAIVE, EXTRA, REAL)
    for (name, line), color in zip(data["growth"].items(), colors, strict=True):
        x = np.array(line["values"]) / line["base"]
        label = f"{name} (1 = {line['base']})"
        left.loglog(x, line["ms"], color=color, marker="o", ms=4, label=label)
    start = np.median([ms for g in data["growth"].values() for ms in at_base(g)])
    ends = np.array(left.get_xlim())
    left.loglog(ends, start * ends, color=RANDOM, ls=":", label="in proportion")
    left.set_xlim(ends)
    ticks = (0.25, 0.5, 1, 2, 4)
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    for axis in (left.xaxis, left.yaxis):
        axis.set_minor_formatter(NullFormatter())
    finish(
        left,
        "one update (eager, one thread)",
        "size, as a multiple of the default",
        "milliseconds",
    )

    rows = [int(key) for key in data["replay_sample_us"]]
    times = list(data["replay_sample_us"].values())
    right.loglog(rows, times, color=DREAM, marker="o", ms=4)
    right.set_ylim(min(times) / 10, max(times) * 10)
    finish(right, "drawing one batch from the replay", "rows held", "microseconds")
    save(fig, path)


def at_base(line: dict[str, Any]) -> list[float]:
    """The times of one growth line at the default's own size."""
    return [ms for v, ms in zip(line["values"], line["ms"], strict=True) if v == line["base"]]
