"""Every figure of the project, made to be read at a width of 830 pixels, without any window.

Their colours and shared pieces are in style.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from dreamer.evaluation import Episode
from lab import style
from lab.effects import SEEDS, Effect
from lab.style import DREAM, HARM, NAIVE, RANDOM, REAL, STYLE, THRESHOLD, WIDTH, finish

Results = dict[str, Any]  # the content of a results file, or one of its runs (lab/results.py)
GOES_ON = "P(the episode goes on)"
SPREAD = "|error| / spread of the data"

OBS_ERRORS = {"naive_obs_error": ("nothing changes", NAIVE), "dream_obs_error": ("dream", DREAM)}
IMAGE_ERRORS = {name.replace("obs", "image"): look for name, look in OBS_ERRORS.items()}
PANELS = [  # title, unit, kind of row in the log, what is drawn of it
    ("world model: losses", "nats or squared error", "report", style.LOSSES),
    ("dreams: error of observations", "error / spread of the data", "eval", OBS_ERRORS),
    ("dreams: error of rewards", "reward", "eval", {"dream_reward_error": ("dream", DREAM)}),
    ("actor: entropy in dreams", "nats", "report", {"entropy": ("policy", DREAM)}),
    ("return scale max(1, P95-P5)", "return", "report", {"ret_scale": ("scale", DREAM)}),
]
IMAGE_PANEL = ("dreams: error of images", "squared error, all pixels", "eval", IMAGE_ERRORS)


@matplotlib.rc_context(STYLE)
def training_figure(
    title: str,
    runs: list[Results],
    threshold: float,
    random_return: float,
    path: Path | str,
    before: Sequence[Results] = (),
    max_entropy: float | None = None,
) -> None:
    """Did it learn, and if not, where is it wrong?

    runs, in colour, and before, in grey behind them: entries of results files, one per seed.
    max_entropy: ln(number of actions), in nats; None where there are infinitely many.
    """
    groups = (before, runs)
    fig = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    grid = fig.add_gridspec(3, 3, height_ratios=[1.5, 1, 1])
    draw_returns(fig.add_subplot(grid[0, :]), title, groups, threshold, random_return)
    ax = [fig.add_subplot(grid[i, j]) for i in (1, 2) for j in range(3)]
    images = any("dream_image_error" in row for run in runs for row in run["diagnostics"])
    drawn = [PANELS[0], IMAGE_PANEL, *PANELS[2:]] if images else PANELS
    for panel, (name, unit, kind, lines) in zip(ax, drawn, strict=False):
        style.draw_logged(panel, groups, kind, lines)
        bounded = "entropy" in lines and max_entropy is not None
        if bounded:
            panel.axhline(max_entropy, color=RANDOM, ls="--", label="uniform policy")
        if lines is IMAGE_ERRORS:
            panel.set_yscale("log")
        elif lines is not style.LOSSES:
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        legend = "above" if lines is style.LOSSES else bounded or "dream" in name
        finish(panel, name, "environment steps", unit, legend)
    draw_calibration(ax[5], groups)
    finish(ax[5], "critic (darker is later)", "discounted return achieved", "value predicted")
    note = f"grey: the {len(before)} seeds of assets/results; " if before else ""
    fig.supxlabel(
        f"{note}lines: mean over seeds; bands: lowest to highest seed\n"
        "the reward's loss is a cross-entropy: its floor is above 0 where rewards lie between bins"
    )
    style.save(fig, path)


def draw_returns(ax: Axes, title: str, groups: tuple, threshold: float, random: float) -> None:
    """Return against environment steps: the seeds, what to beat, and the training episodes, except
    a few far below the random policy's."""
    bottom, runs = random - abs(threshold - random), groups[1]
    trained = [point for run in runs for point in run["train_returns"]]
    if shown := [point for point in trained if point[1] > bottom]:
        lower = len(trained) - len(shown)
        label = "training episodes" + (f" ({lower} are lower)" if lower else "")
        ax.scatter(*zip(*shown, strict=True), color=RANDOM, s=5, alpha=0.4, lw=0, label=label)
    looks = (style.BEFORE, "assets/results: "), (DREAM, "")
    for group, (color, label) in zip(groups, looks, strict=True):
        if curves := style.curves_of(group):
            label += f"mean of {len(group)} seeds" if len(group) > 1 else f"seed {group[0]['seed']}"
            style.draw_seeds(ax, curves, color, lw=2.5, label=label)
    finals = [np.mean(run["final_returns"]) for run in runs]
    label = f"{len(runs[0]['final_returns'])} fresh episodes: {np.mean(finals):z.1f}"
    look = {"color": REAL, "marker": "D", "s": 24, "zorder": 3, "label": label}
    ax.scatter([run["env_steps"] for run in runs], finals, **look)
    ax.axhline(threshold, color=THRESHOLD, ls="--", label=f"threshold {threshold:g}")
    ax.axhline(random, color=RANDOM, ls=":", label=f"random policy {random:z.0f}")
    finish(ax, f"{title}: greedy return while learning", "environment steps", "return", legend=True)
    ax.title.set_fontsize("large")


def draw_calibration(ax: Axes, groups: tuple) -> None:
    """The critic's values against what the greedy agent achieves, discounted: a dot for each
    evaluation of each seed."""
    for group, color in zip(groups, (style.BEFORE, None), strict=True):
        rows = [r for run in group for r in run["diagnostics"] if "value_real" in r]
        if rows:
            x, y, step = ([r[name] for r in rows] for name in ("value_real", "value_pred", "step"))
            look = {"color": color} if color else {"c": step, "cmap": style.LATER}
            ax.scatter(x, y, s=14, lw=0, **look)
    if ax.has_data():
        limits = [f(*ax.get_xlim(), *ax.get_ylim()) for f in (min, max)]
        ax.plot(limits, limits, color=RANDOM, ls=":", zorder=1)
        ax.set(xlim=limits, ylim=limits)
        ax.locator_params(nbins=4)


@matplotlib.rc_context(STYLE)
def spaces_figure(tasks: dict[str, Results], path: Path | str) -> None:
    """Greedy returns of each task's seeds while it is learned, from its results file. Left
    out are tasks whose curves are constant: learned before the first evaluation."""
    curves = {task: style.curves_of(data["runs"]) for task, data in tasks.items()}
    drawn = [task for task in tasks if np.ptp(style.same_steps(curves[task])[1])]
    fig, axes = panels(len(drawn), 2, 3.2)
    for ax, task in zip(axes, drawn, strict=True):
        data = tasks[task]
        style.draw_seeds(ax, curves[task], DREAM, lw=2.5, label="mean of seeds")
        ax.axhline(data["threshold"], color=THRESHOLD, ls="--", label="learned")
        ax.axhline(data["random_return"], color=RANDOM, ls=":", label="random policy")
        finish(ax, data["env_id"], "environment steps", "return")
    title = "categories, several actions, memory: greedy return while learning"
    style.title_and_legend(fig, title, axes, 3)
    style.save(fig, path)


def panels(count: int, columns: int, height: float, more: float = 0) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of this height (inches), and `more` for what is around."""
    rows = -(-count // columns)
    fig = Figure(figsize=(WIDTH, height * rows + more), layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return fig, axes[:count]


@matplotlib.rc_context(STYLE)
def transfer_figure(
    found: dict[str, Results], authors: dict[str, dict[str, Any]], path: Path | str
) -> None:
    """Returns against environment steps, a panel for each results file (`<variant>_<task>`): ours,
    greedy and of training episodes, over the authors' mean and spread (of `env_steps` and
    `returns`, seeds x steps)."""
    fig, axes = panels(len(found), 3, 2.4)
    for ax, (name, data) in zip(axes, found.items(), strict=True):
        variant, _, task = name.partition("_")
        curves = [(authors[task]["env_steps"], values) for values in authors[task]["returns"]]
        style.draw_seeds(ax, curves, style.BEFORE, lw=2, label="the authors', training episodes")
        episodes = np.array([row for run in data["runs"] for row in run["train_returns"]])
        if len(episodes):
            groups = np.ceil(episodes[:, 0] / 5_000)
            means = [(5_000 * k, episodes[groups == k, 1].mean()) for k in np.unique(groups)]
            ax.plot(*zip(*means, strict=True), color=DREAM, ls=":", label="ours, same")
        curves = style.curves_of(data["runs"])
        style.draw_seeds(ax, curves, DREAM, single=True, lw=2.5, label="ours, greedy")
        title = task if variant == "default" else f"{task} ({variant})"
        ax.set_xlim(0, 2 * data["runs"][0]["env_steps"])
        finish(ax, title)
    style.title_and_legend(fig, "DM Control from numbers: mean over seeds", axes, 3)
    fig.supxlabel("environment steps")
    fig.supylabel("return")
    style.save(fig, path)


@matplotlib.rc_context(STYLE)
def sample_efficiency_figure(tasks: dict[str, dict[str, Results | None]], path: Path | str) -> None:
    """Greedy return against environment steps, a panel for each task.

    tasks: task -> method (of `METHODS`) -> its results file, or None where nothing has been
    measured, which the panel then says; "dreamer" is there for every task.
    """
    fig, axes = panels(len(tasks), 2, 3.4)
    for ax, methods in zip(axes, tasks.values(), strict=True):
        draw_methods(ax, methods)
    methods = [name for name, *_ in style.METHODS.values()]
    style.title_and_legend(fig, "How many steps does it take?", axes, columns=6, first=methods)
    fig.supylabel("greedy return (thick: mean over seeds, thin: each seed)")
    fig.supxlabel("environment steps, on a logarithmic axis")
    style.save(fig, path)


def draw_methods(ax: Axes, methods: dict[str, Results | None]) -> None:
    """One task's panel. What lies far below chance is cut off; arrows mark where, and a note says
    how far down it goes."""
    ours, drawn, notes = methods["dreamer"], {}, []
    for method, data in methods.items():
        name, color, marker = style.METHODS[method]
        if data is None:
            notes.append(f"{name}: not measured yet")
            continue
        drawn[name, color] = curves = style.curves_of(data["runs"])
        look = {"marker": marker, "ms": 4, "zorder": 3 if data is ours else 2, "label": name}
        style.draw_seeds(ax, curves, color, single=True, **look)
        if len(curves) < SEEDS:
            notes.append(f"{name}: {len(curves)} of {SEEDS} seeds")
    threshold, random = ours["threshold"], ours["random_return"]
    ax.axhline(threshold, color=THRESHOLD, ls="--", label="threshold")
    ax.axhline(random, color=RANDOM, ls=":", label="random policy")
    bottom = max(ax.get_ylim()[0], random - 0.6 * (threshold - random))
    for (name, color), curves in drawn.items():
        steps, values = style.same_steps(curves)
        if (below := steps[values.min(0) < bottom]).size:
            ax.plot(below, below * 0 + bottom, "v", color=color, ms=5, clip_on=False, zorder=4)
            notes.append(f"seeds of {name} go down to {values.min():z.0f}")
    look = {"bbox": {"fc": "white", "lw": 0, "alpha": 0.8, "pad": 1}, "transform": ax.transAxes}
    ax.text(0.98, 0.04, "\n".join(notes), ha="right", va="bottom", **look)
    ax.set(xscale="log", ylim=(bottom, None))
    finish(ax, ours["env_id"])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())


@matplotlib.rc_context(STYLE)
def ablation_figure(effects: dict[str, dict[str, Effect]], path: Path | str) -> None:
    """What each idea buys: a line for each task on which it was removed, with the effect and its
    interval, coloured where that excludes 0; the idea that is missed most stands first.

    effects: idea -> title of a task -> its effect, which has no seeds where there is no result.
    """
    rows = {i: [item for item in row.items() if item[1].seeds] for i, row in effects.items()}
    rows = {i: sorted(row, key=lambda item: item[1].mean) for i, row in rows.items() if row}
    lines = sum(map(len, rows.values()))
    fig = Figure(figsize=(WIDTH, 1.2 + 0.155 * lines + 0.06 * len(rows)), layout="constrained")
    ax = fig.subplots()
    y, labels = 0.0, {}
    for number, idea in enumerate(sorted(rows, key=lambda i: rows[i][0][1].mean)):
        top, bottom = y - 0.7, y + len(rows[idea]) - 0.3
        if number % 2 == 0:
            look = {"color": "#f0f0f0", "lw": 0, "zorder": 0, "clip_on": False}
            ax.axhspan(top, bottom, xmin=-1, **look).set_in_layout(False)
        at = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        ax.annotate(idea, (0, (top + bottom) / 2), (-250, 0), weight="bold", **at)
        for title, e in rows[idea]:
            color = (RANDOM, DREAM, HARM)[e.sign]
            ax.plot([e.low, e.high], [y, y], color=color, alpha=1 if e.sign else 0.6)
            ax.plot(e.mean, y, "o", color=color, ms=4.5, mfc=color if e.sign else "white")
            labels[y] = title + (f" ({e.seeds} seeds)" if e.seeds < SEEDS else "")
            y += 1
        y += 0.4
    ax.axvline(0, color=REAL, lw=0.8)
    ax.set_yticks([*labels], [*labels.values()])
    ax.set_ylim(max(y, 1) - 0.7, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    fig.suptitle("What each idea buys: change of the score when it is removed")
    fig.supxlabel(
        "score: 0 is the random policy, 1 the threshold; left of the line the idea is missed\n"
        "intervals: 95% over seeds, coloured where they exclude 0"
    )
    style.save(fig, path)


@matplotlib.rc_context(STYLE)
def world_model_figure(
    title: str,
    names: Sequence[str],
    reports: list[dict[str, Any]],
    error: dict[str, np.ndarray],
    cont: dict[str, np.ndarray],
    path: Path | str,
) -> None:
    """What a world model knows: losses, error against dream length, and the end of an episode.

    names: of the O dimensions. reports: rows as in the log, `step` counting updates. error: `dream`
    and `naive` (N, H, O), absolute errors at each dream length, NaN after the episode's end.
    cont: `real`, `filtered` and `dreamed` (N, K), whether an episode goes on, in its last K rows.
    """
    fig, (losses, total, each, end) = panels(4, 2, 3)
    fig.suptitle(title)
    style.draw_logged(losses, ([], [{"diagnostics": reports}]), "report", style.LOSSES)
    finish(losses, "losses while learning", "update", "nats or squared error", "above")

    length = np.arange(1, error["dream"].shape[1] + 1)
    style.draw_middle(total, length, error["naive"].mean(-1), NAIVE, "last observation repeated")
    style.draw_middle(total, length, error["dream"].mean(-1), DREAM, "dream")
    finish(total, "error, mean of all dimensions", "dreamed steps", SPREAD, legend=True)
    colors = (REAL, THRESHOLD, HARM, style.EXTRA)
    for name, mean, color in zip(names, np.nanmean(error["dream"], 0).T, colors, strict=True):
        each.plot(length, mean, color=color, label=name)
    finish(each, "error of the dream in each dimension", "dreamed steps", SPREAD, legend=True)
    for ax in (total, each):
        ax.set_ylim(bottom=0)

    before = np.arange(1 - cont["real"].shape[1], 1)
    style.draw_middle(end, before, cont["dreamed"], DREAM, "dreamed")
    watching = {"color": style.EXTRA, "ls": "--", "label": "predicted, watching"}
    end.plot(before, cont["filtered"].mean(0), **watching)
    end.plot(before, cont["real"].mean(0), color=REAL, ls=":", lw=2, label="real")
    finish(end, "does it see the end coming?", "steps relative to the end", GOES_ON, legend=True)
    fig.supxlabel(f"bands: the middle 80% of {len(error['dream'])} episodes that it never saw")
    style.save(fig, path)


@matplotlib.rc_context(STYLE)
def dream_figure(
    title: str,
    names: Sequence[str],
    context: int,
    real: Episode,
    dreams: Episode,
    path: Path | str,
    trained: int | None = None,
    step: str = "environment step",
) -> None:
    """Dreamed against real, a panel for each observation dimension, for reward and for continue;
    the last two only where they change. A dream that has ended is left out from there on,
    and all are when three quarters have.

    names: of the O dimensions. real: rows 0..T-1 of an episode, obs (T, O), reward (T,), cont
    (T,); dreams: K dreams of rows context..T-1, obs (K, T - context, O) and so on. trained: length
    of the dreams that the actor learned from, which is marked. step: what a row is.
    """
    ended = over(dreams["cont"])
    until = slice(None, int(((~ended).mean(0) >= 0.25).sum()))
    seen = {name: np.where(ended.T, np.nan, rows.T).T[:, until] for name, rows in dreams.items()}
    drawn = [(name, real["obs"][:, i], seen["obs"][..., i]) for i, name in enumerate(names)]
    for name, key, dreamed in (("reward", "reward", seen), (GOES_ON, "cont", dreams)):
        if changes(np.append(real[key][1:], np.nanmean(dreamed[key], 0))):
            drawn.append((name, np.append(np.nan, real[key][1:]), dreamed[key]))
    count, steps = len(drawn), np.arange(len(real["obs"]))
    columns = 2 if count in (2, 4) else 3 if count <= 6 or count == 9 else 4
    fig, axes = panels(count, columns, 1.7, more=1)
    for ax, (name, truth, dreamed) in zip(axes, drawn, strict=True):
        ax.axvspan(0, context - 1, color=RANDOM, alpha=0.2, lw=0, label="observed")
        ax.plot(steps, truth, color=REAL, label="real")
        ahead = steps[context:][: dreamed.shape[1]]
        style.draw_middle(ax, ahead, dreamed, DREAM, f"{len(dreamed)} dreams: mean, middle 80%")
        if name in names:
            last = np.full(len(steps) - context, truth[context - 1])
            ax.plot(steps[context:], last, color=NAIVE, ls="--", label="last observation repeated")
        if trained and context - 1 + trained < steps[-1]:
            label = "length of dreams in training"
            ax.axvline(context - 1 + trained, color=THRESHOLD, ls=":", label=label)
        bottom, top = (-0.05, 1.05) if name == GOES_ON else ax.get_ylim()
        margin = max(0.0, 0.05 - (top - bottom) / 2)  # do not blow up what hardly moves
        ax.set_ylim(bottom - margin, top + margin)
        finish(ax, name)
    style.title_and_legend(fig, title, axes[:1], columns=3)
    fig.supxlabel(step)
    style.save(fig, path)


def over(cont: np.ndarray) -> np.ndarray:
    """Where dreams have ended before a row, from P(the episode goes on) (K, H): (K, H) bool."""
    ended = np.cumsum(cont < 0.5, 1) > 0
    return np.pad(ended, ((0, 0), (1, 0)))[:, :-1]  # the row in which it ends still counts


def changes(values: np.ndarray) -> bool:
    """Whether a quantity (M,) is worth a panel: all but a few of its values are not the same."""
    low, high = np.percentile(values, [2, 98])
    return bool(high - low > 0.02 * np.abs(values).max())


@matplotlib.rc_context(STYLE)
def latents_figure(
    title: str,
    points: np.ndarray,
    colourings: Sequence[tuple[str, np.ndarray, str]],
    path: Path | str,
) -> None:
    """Where the model's states lie: a map of them (M, 2), drawn once for each colouring.

    colourings: (name with unit, values (M,), colour map). Two words get a legend, numbers a colour
    bar; the map "coolwarm" is centred on 0. Numbers that hardly change are left out; the outermost
    2% on both sides take the outermost colour.
    """
    kept = [c for c in colourings if c[1].dtype.kind == "U" or changes(c[1])]
    fig, axes = panels(len(kept), len(kept), 0.95 * WIDTH / len(kept), more=1.2)
    fig.suptitle(title)
    for ax, (name, values, cmap) in zip(axes, kept, strict=True):
        ax.set(title=name, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        words = values.dtype.kind == "U"
        if words:
            found, values = np.unique(values, return_inverse=True)
        low, high = (0, 1) if words else np.percentile(values, [2, 98])
        if cmap == "coolwarm":
            low, high = -max(-low, high), max(-low, high)
        colors = ListedColormap([DREAM, NAIVE]) if words else cmap
        dots = ax.scatter(*points.T, c=values, cmap=colors, vmin=low, vmax=high, s=6, lw=0)
        bar = {"location": "bottom", "shrink": 0.9, "pad": 0.03, "ticks": MaxNLocator(3)}
        bar = fig.colorbar(dots, ax=ax, **bar)
        if words:
            bar.ax.set_visible(False)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "frameon": False}
            ax.legend(dots.legend_elements()[0], found, ncols=2, handletextpad=0, **below)
    style.save(fig, path)
