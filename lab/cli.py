"""What the numbered scripts share: their flags, their folders, and how they end.

A script has a `CONFIG`, a function `main(args)`, and as its last line
`cli.run(main, cli.parse(__file__, __doc__, CONFIG))`.
"""

import dataclasses
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import gymnasium as gym
import tyro

import dreamer.cli
from dreamer.config import Config

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"  # comes with the repository; only `--publish` writes it
RUNS = ROOT / "runs"

# A run that goes through every stage in seconds and learns nothing (--smoke).
SMOKE: dict[str, Any] = dict(
    **dict(steps=300, train_ratio=16.0, capacity=1_000, prefill=100, batch_size=4, seq_len=16),
    **dict(deter=16, hidden=16, layers=1, categoricals=4, classes=4, imag_starts=16, depth=2),
    **dict(imag_horizon=5, evals=2, eval_episodes=2),
)


@dataclass(frozen=True)
class Args(dreamer.cli.ConfigFlags):
    """The flags of a numbered script: its own, and those of `Config`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    resume: bool = False  # go on from the run's checkpoint, if there is one
    smoke: bool = False  # every stage in seconds, with a tiny config, below runs/smoke
    out: Path = RUNS  # the folder below which the run writes
    tensorboard: bool = False  # log for TensorBoard too, where it is installed
    script: tyro.conf.Suppress[Path] = Path()

    @property
    def run_dir(self) -> Path:
        """The folder of this script's run with this seed."""
        return self.out / self.script.stem / f"seed{self.run.seed}"

    @property
    def final_episodes(self) -> int:
        """Episodes of the evaluation at the end."""
        return 2 if self.smoke else 100


def parse(
    script: str,
    description: str | None,
    config: Config,
    argv: Sequence[str] | None = None,
    kind: type[Args] = Args,
) -> Any:
    """Read the command line of a numbered script, or these words, into a `kind`. script: its
    `__file__`; description: its `__doc__`; config: its defaults, which --smoke makes tiny."""
    argv, out = sys.argv[1:] if argv is None else argv, RUNS
    if "--smoke" in argv:
        config, out = dataclasses.replace(config, **SMOKE), RUNS / "smoke"
    default = kind(**kind.groups(config), out=out, script=Path(script).resolve())
    text = f"{description}\nv1, v2: the versions of arXiv 2301.04104; authors: their code"
    return dreamer.cli.parse(kind, text, argv, default=default)


@dataclass(frozen=True)
class JobFlags:
    """The flags of what runs many jobs: train_all.py and the comparisons, 07 and 08."""

    seeds: tuple[int, ...] = (0,)
    jobs: int = 1  # runs at a time, one thread each
    scheduler: str | None = None  # tcp://HOST:PORT of a Dask cluster (docs/distributed.md)
    fresh: bool = False  # skip nothing, resume nothing
    smoke: bool = False  # every stage in seconds, below runs/smoke
    publish: bool = False  # bring what is complete to assets/
    out: Path = RUNS  # the folder below which all runs write

    def __post_init__(self) -> None:
        if self.publish and (self.smoke or getattr(self, "steps", None)):
            raise ValueError("--publish takes whole runs, not --smoke or --steps")

    @property
    def base(self) -> Path:
        """The folder below which all runs write; --smoke has its own."""
        return RUNS / "smoke" if self.smoke and self.out == RUNS else self.out


def run(main: Callable[[Any], int | None], args: Any) -> NoReturn:
    """Call `main(args)` and end the program: after Ctrl-C with the command that goes on (status
    130); where the package, the system or Gymnasium refuse, with their sentence (status 1)."""
    try:
        sys.exit(main(args))
    except KeyboardInterrupt:
        again = [word for word in sys.argv if word not in ("--resume", "--fresh")]
        again += ["--resume"] if isinstance(args, Args) else []
        print(f"\nInterrupted. To go on:\n    {shlex.join([str(short(sys.executable)), *again])}")
        sys.exit(130)
    except (ValueError, FloatingPointError, OSError, gym.error.Error) as error:
        folder = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent
        if isinstance(error, ValueError) and folder not in (ROOT / "dreamer", ROOT / "lab"):
            raise  # a defect: its traceback says more
        sys.exit(f"error: {error}")


def short(path: Path | str) -> Path:
    """The path as the user would type it from where they are."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
