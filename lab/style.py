"""How the project's figures look: colours, sizes, and the pieces that they share.

Each role has one colour everywhere (the Okabe-Ito palette, which colour-blind readers can tell
apart): what is real is black, what is dreamed blue, the naive guess orange. Several seeds are drawn
as their mean, with a band from the lowest to the highest.
"""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from dreamer.checkpoint import write_atomic

REAL, DREAM, NAIVE, BEFORE = "black", "#0072B2", "#E69F00", "#B0B0B0"
THRESHOLD, RANDOM, EXTRA, HARM = "#009E73", "#777777", "#CC79A7", "#D55E00"
LATER = LinearSegmentedColormap.from_list("later", ["#C6DDEE", DREAM, "#00263D"])
METHODS = {  # name, colour, marker
    "dreamer": ("Dreamer", DREAM, "D"),
    "ppo": ("PPO", HARM, "o"),
    "dqn": ("DQN", EXTRA, "s"),
    "sac": ("SAC", NAIVE, "^"),
}
LOSSES = {  # of the world model; `rep_loss` is the same number as `dyn_loss`, with other gradients
    "dyn_loss": ("KL", DREAM),
    "reward_loss": ("reward", NAIVE),
    "obs_loss": ("observation", REAL),
    "image_loss": ("image", EXTRA),
    "cont_loss": ("continue", THRESHOLD),
}
OBS_NAMES = {  # names of the dimensions, with their units
    "CartPole-v1": ["cart position", "cart velocity", "pole angle (rad)", "pole velocity (rad/s)"],
    "Pendulum-v1": ["cos(angle)", "sin(angle)", "angular velocity (rad/s)"],
    "Acrobot-v1": [f"{f}(angle {i})" for i in (1, 2) for f in ("cos", "sin")]
    + [f"velocity {i} (rad/s)" for i in (1, 2)],
    "LunarLander-v3": [f"{name} (scaled)" for name in ("x", "y", "x velocity", "y velocity")]
    + ["angle (rad)", "spin (scaled)", "left leg touches", "right leg touches"],
}
WIDTH = 8.3  # inches: on a page of 830 pixels, 9 points are 12 pixels
STYLE = {"font.size": 9, "axes.titlesize": 9.5, "figure.labelsize": 9, "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25}
STYLE |= {"legend.columnspacing": 1, "legend.handlelength": 1.2}

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


def save(fig: Figure, path: Path | str) -> None:
    """Write a figure; makes the folder."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150)
    save_png(Image.open(buffer).convert("RGB"), path)


def save_png(picture: Image.Image, path: Path | str, method: Any = None) -> None:
    """Write a PNG of at most 256 colours, whole or not at all. method: of choosing them."""
    small = picture.quantize(256, method, dither=Image.Dither.NONE)
    write_atomic(Path(path), lambda part: small.save(part, "PNG", optimize=True))


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean over `width` points, fewer at the ends: (T,) -> (T,)."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def curves_of(runs: Iterable[dict[str, Any]]) -> list[Curve]:
    """Learning curves of the runs that have been evaluated."""
    curves = [(run["curve"]["env_steps"], run["curve"]["return"]) for run in runs]
    return [curve for curve in curves if curve[0]]


def same_steps(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (E,) at which the curves of all seeds have a value, and the values (seeds, E)."""
    found = [dict(zip(steps, values, strict=True)) for steps, values in curves]
    steps = sorted(set.intersection(*map(set, found)))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in found])


def draw_seeds(
    ax: Axes, curves: Sequence[Curve], color: str, single: bool = False, **look: Any
) -> None:
    """Mean over the seeds' curves, and a band from the lowest to the highest; or every single one,
    as a thin line behind all means."""
    steps, values = same_steps(curves)
    if single:
        ax.plot(steps, values.T, color=color, lw=0.7, alpha=0.45, zorder=1.5)
    elif len(curves) > 1:
        band = {"color": color, "alpha": 0.2, "lw": 0, "zorder": look.get("zorder", 2)}
        ax.fill_between(steps, values.min(0), values.max(0), **band)
    ax.plot(steps, values.mean(0), color=color, **look)


def draw_logged(ax: Axes, groups: tuple, kind: str, lines: dict[str, tuple[str, str]]) -> None:
    """Logged quantities, key -> (name, colour), of (runs in grey, runs in colour).

    Reports are single updates and noisy: they are smoothed; evaluations are not. Losses get a
    logarithmic axis.
    """
    for key, (name, color) in lines.items():
        for group, shade, label in zip(groups, (BEFORE, color), (None, name), strict=True):
            curves = []
            for run in group:
                rows = [r for r in run["diagnostics"] if r["kind"] == kind and key in r]
                rows = [r for r in rows if r[key] or lines is not LOSSES]  # a logarithm has no 0
                if rows:
                    values = np.array([r[key] for r in rows])
                    values = smooth(values) if kind == "report" else values
                    curves.append(([r["step"] for r in rows], values))
            if curves:
                draw_seeds(ax, curves, shade, label=label, zorder=2 if label else 1.5)
    if lines is LOSSES and ax.has_data():
        ax.set_yscale("log")


def draw_middle(ax: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """Mean of samples (N, X), NaN ignored, with the band that holds the middle 80% of them."""
    low, high = np.nanpercentile(values, [10, 90], axis=0)
    ax.fill_between(x, low, high, color=color, alpha=0.25, lw=0)
    ax.plot(x, np.nanmean(values, 0), color=color, label=label)


def finish(
    ax: Axes, title: str, xlabel: str = "", ylabel: str = "", legend: bool | str = False
) -> None:
    """Title and labels; a panel without data says so. legend: "above" puts it below the title."""
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if not ax.has_data():
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
    elif legend == "above":
        look = {"frameon": False, "borderaxespad": 0, "labelspacing": 0.2}
        names = ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=2, **look).texts
        ax.set_title(title, pad=12 * math.ceil(len(names) / 2) + 10)
    elif legend:
        ax.legend(loc="best")
    if xlabel in ("environment steps", "update"):
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2000 is written 2k


def title_and_legend(
    fig: Figure, title: str, axes: Iterable[Axes], columns: int, first: Sequence[str] = ()
) -> None:
    """Above all panels; what has the same name in several of them stands there once. first: names
    that come first, if they are there."""
    found: dict[str, Any] = {}
    for ax in axes:
        found |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    handles = {name: found[name] for name in [*first, *found] if name in found}
    look = {"loc": "outside upper center", "frameon": False, "title_fontsize": "large"}
    fig.legend(handles.values(), handles, title=title, ncols=columns, **look)
