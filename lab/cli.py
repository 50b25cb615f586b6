"""What all numbered scripts share: flags made from `Config`, folders, and how a run ends.

A script is a `CONFIG`, a function `main(args)`, and, at its end,
`cli.run(main, cli.parse(__file__, __doc__, CONFIG))`.
"""

from __future__ import annotations

import dataclasses
import difflib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from dreamer.config import Config
from dreamer.training import need_tensorboard

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"  # comes with the repository; only `--publish` writes it

# A run that goes through every stage in seconds and learns nothing (--smoke).
SMOKE = dict(
    **dict(steps=300, train_ratio=16.0, capacity=1_000, prefill=100, batch_size=4, seq_len=16),
    **dict(deter=16, hidden=16, layers=1, categoricals=4, classes=4, imag_starts=16),
    **dict(imag_horizon=5, evals=2, eval_episodes=2),
)


@dataclass(frozen=True)
class Flags(Config):
    """The fields of `Config`, and what concerns the script alone."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    resume: bool = False  # go on from the run's checkpoint, if there is one
    smoke: bool = False  # every stage in seconds, with a tiny config, below runs/smoke
    out: Path | None = None  # the folder below which the run writes, instead of runs
    tensorboard: bool = False  # log for TensorBoard too, where it is installed
    shipped: bool = False  # 04 alone: draw the agents of assets/, not those of your own runs

    def __post_init__(self) -> None:
        """Nothing is checked here: `parse` does it by making the `Config`."""


@dataclass(frozen=True)
class Args:
    """The flags of a script's run, and the folder of all that it writes."""

    script: Path  # absolute
    config: Config
    device: str
    resume: bool
    smoke: bool
    tensorboard: bool
    shipped: bool
    base: Path  # absolute: runs, or --out
    resume_command: str  # what the user types to go on with this run

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def run_dir(self) -> Path:
        """Log, checkpoint, agent, figures and result of this script with this seed."""
        return self.base / self.script.stem / f"seed{self.seed}"

    @property
    def final_episodes(self) -> int:
        """Episodes of the evaluation at the end."""
        return 2 if self.smoke else 100


def parse(
    script: str | Path,
    description: str | None,
    config: Config,
    argv: Sequence[str] | None = None,
) -> Args:
    """Read the command line of a numbered script.

    script: its `__file__`; description: its `__doc__`, shown by --help; config: its defaults,
    replaced by a tiny one under --smoke; flags given by the user win over both. argv: the words
    after the script's name (default: sys.argv's). A bad flag or value ends the program with a
    message and exit status 2.
    """
    path = Path(script).resolve()
    words = list(sys.argv[1:] if argv is None else argv)
    if "--smoke" in words:
        config = dataclasses.replace(config, **SMOKE)
    flags, unknown = tyro.cli(
        Flags,
        prog=path.name,
        description=description,
        args=words,
        default=Flags(**dataclasses.asdict(config)),
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if unknown:
        fail(unknown_flag(unknown[0]), status=2)
    try:
        config = Config(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(Config)})
        if flags.tensorboard:
            need_tensorboard()
    except ValueError as error:
        fail(str(error), status=2)

    called = sys.argv[0] if argv is None else str(path)
    python = str(short(Path(sys.executable)))
    command = [python, called, *words, *([] if flags.resume else ["--resume"])]
    base = flags.out or path.parent / "runs" / ("smoke" if flags.smoke else "")
    shared = (flags.device, flags.resume, flags.smoke, flags.tensorboard, flags.shipped)
    return Args(path, config, *shared, base.expanduser().resolve(), shlex.join(command))


def unknown_flag(word: str) -> str:
    """A sentence about a flag that does not exist, naming those that do."""
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Flags)]
    word = word.partition("=")[0]
    close = difflib.get_close_matches(word, flags, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no flag {word}{hint}; the flags are {', '.join(flags)}"


def run(main: Callable[[Args], None], args: Args) -> None:
    """Call `main(args)`. Ctrl-C ends with the command that resumes (exit status 130); what the
    package or the system refuses ends with its one sentence (status 1); anything else is a
    defect and keeps its traceback."""
    try:
        main(args)
    except KeyboardInterrupt:
        print(f"\nInterrupted. To go on:\n    {args.resume_command}")
        sys.exit(130)
    except (ValueError, FloatingPointError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = raised_in.parent in (ROOT / "dreamer", ROOT / "lab")
        if not ours and not isinstance(error, OSError):
            raise
        fail(str(error), status=1)


def short(path: Path) -> Path:
    """The path as the user would type it from where they are."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def fail(message: str, status: int) -> None:
    """Print one sentence to stderr and end the program."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
