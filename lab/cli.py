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

from dreamer.agent import Config

# A run that goes through every stage in seconds and learns nothing (--smoke).
SMOKE = {
    "steps": 300,
    "train_ratio": 16.0,
    "capacity": 1_000,
    "prefill": 100,
    "batch_size": 4,
    "seq_len": 16,
    "deter": 16,
    "hidden": 16,
    "layers": 1,
    "categoricals": 4,
    "classes": 4,
    "imag_starts": 16,
    "imag_horizon": 5,
    "evals": 2,
    "eval_episodes": 2,
}


@dataclass(frozen=True)
class Flags(Config):
    """The fields of `Config`, and what concerns the script alone."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    resume: bool = False  # go on from the run's checkpoint, if there is one
    smoke: bool = False  # every stage in seconds, with a tiny config; nothing goes to assets/
    out: Path | None = None  # all that the run writes goes below this folder
    tensorboard: bool = False  # log for TensorBoard too, where it is installed

    def __post_init__(self) -> None:
        """Nothing is checked here: `parse` does it by making the `Config`."""


@dataclass(frozen=True)
class Args:
    """The flags of a script's run and the folders that follow from them."""

    script: Path  # absolute
    config: Config
    device: str
    resume: bool
    smoke: bool
    out: Path | None  # absolute; None: the repository itself
    tensorboard: bool
    resume_command: str  # what the user types to go on with this run
    as_shipped: bool  # the script's own config, whatever the seed

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def base(self) -> Path:
        """The folder below which everything is written."""
        return self.out or self.script.parent

    @property
    def run_dir(self) -> Path:
        """Log, config, checkpoint and weights of this script with this seed."""
        return self.base / "runs" / self.script.stem / f"seed{self.seed}"

    @property
    def assets(self) -> Path:
        """Figures; the numbers behind them are in `results`, trained weights in `agents`.

        An experiment with another config keeps its own beside its run: what is in the
        repository stays comparable.
        """
        ours = self.as_shipped or self.smoke or self.out
        return (self.base if ours else self.run_dir) / "assets"

    @property
    def results(self) -> Path:
        return self.assets / "results"

    @property
    def agents(self) -> Path:
        return self.assets / "agents"

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
    after the script's name (default: sys.argv's). Without --out a smoke run writes to
    runs/smoke. A bad flag or value ends the program with a message and exit status 2.
    """
    path = Path(script).resolve()
    words = list(sys.argv[1:] if argv is None else argv)
    shipped = config
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
    except ValueError as error:
        fail(str(error), status=2)

    out = flags.out
    if flags.smoke and out is None:
        out = path.parent / "runs" / "smoke"
    called = sys.argv[0] if argv is None else str(path)
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    command = [str(python), called, *words, *([] if flags.resume else ["--resume"])]
    return Args(
        path,
        config,
        flags.device,
        flags.resume,
        flags.smoke,
        out and out.resolve(),
        flags.tensorboard,
        shlex.join(command),
        dataclasses.replace(config, seed=shipped.seed) == shipped,
    )


def unknown_flag(word: str) -> str:
    """A sentence about a flag that does not exist, naming those that do."""
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Flags)]
    close = difflib.get_close_matches(word, flags, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no flag {word}{hint}; the flags are {', '.join(flags)}"


def run(main: Callable[[Args], None], args: Args) -> None:
    """Call `main(args)`. Ctrl-C ends with the command that resumes (exit status 130); what the
    package or the system refuses ends with its one sentence (status 1); anything else is a
    defect and keeps its traceback. The run's `result.json`, the mark of a complete one, is taken
    away first."""
    try:
        (args.run_dir / "result.json").unlink(missing_ok=True)
        main(args)
    except KeyboardInterrupt:
        print(f"\nInterrupted. To go on from the checkpoint:\n    {args.resume_command}")
        sys.exit(130)
    except (ValueError, FloatingPointError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = raised_in.parent == Path(__file__).resolve().parent
        if not ours and not isinstance(error, OSError):
            raise
        fail(str(error), status=1)


def fail(message: str, status: int) -> None:
    """Print one sentence to stderr and end the program."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
