"""What all numbered scripts share: flags made from `Config`, folders, and how a run ends.

A script is a `CONFIG`, a function `main(args)`, and, at its end,
`cli.run(main, cli.parse(__file__, __doc__, CONFIG))`.
"""

import argparse
import dataclasses
import difflib
import json
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import gymnasium as gym
import tyro

from dreamer.checkpoint import REMEDY
from dreamer.config import Config
from dreamer.tensorboard import need_tensorboard

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"  # comes with the repository; only `--publish` writes it

# A run that goes through every stage in seconds and learns nothing (--smoke).
SMOKE = dict(
    **dict(steps=300, train_ratio=16.0, capacity=1_000, prefill=100, batch_size=4, seq_len=16),
    **dict(deter=16, hidden=16, layers=1, categoricals=4, classes=4, imag_starts=16, depth=2),
    **dict(imag_horizon=5, evals=2, eval_episodes=2),
)


@dataclass(frozen=True)
class Args(Config):
    """The flags of a script: the fields of `Config`, and what concerns the script alone."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    resume: bool = False  # go on from the run's checkpoint, if there is one
    smoke: bool = False  # every stage in seconds, with a tiny config, below runs/smoke
    out: Path | None = None  # the folder below which the run writes, instead of runs
    tensorboard: bool = False  # log for TensorBoard too, where it is installed
    script: tyro.conf.Suppress[Path] = Path()  # absolute
    resume_command: tyro.conf.Suppress[str] = ""  # what the user types to go on with this run

    def __post_init__(self) -> None:
        """Nothing is checked here: making the `config` does it."""

    @property
    def config(self) -> Config:
        return Config(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Config)})

    @property
    def base(self) -> Path:
        """The folder below which all runs write: runs, or --out; absolute."""
        own = self.script.parent / "runs" / ("smoke" if self.smoke else "")
        return self.out or own

    @property
    def run_dir(self) -> Path:
        """Log, checkpoint, agent, figures and result of this script with this seed."""
        return self.base / self.script.stem / f"seed{self.seed}"

    @property
    def final_episodes(self) -> int:
        """Episodes of the evaluation at the end."""
        return 2 if self.smoke else 100


def full_path(text: str) -> Path:
    """The absolute path that a flag names, `~` expanded; argparse shows what this raises."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path is empty: is a variable of the shell not set?")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, an unknown user
        raise argparse.ArgumentTypeError(str(error)) from None


def words_of(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """How tyro reads paths and whole numbers (such as 1e4); `parse` then judges them."""
    read = {Path: str, int: float}.get(info.type)
    return read and tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if read is str else "INT",
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    script: str | Path,
    description: str | None,
    config: Config,
    argv: Sequence[str] | None = None,
    kind: type[Args] = Args,
) -> Args:
    """Read the command line of a numbered script.

    script: its `__file__`; description: its `__doc__`, shown by --help; config: its defaults,
    replaced by a tiny one under --smoke; flags given by the user win over both. argv: the words
    after the script's name (default: sys.argv's); kind: of a script with flags of its own. A bad
    flag or value ends the program with a message and exit status 2.
    """
    path = Path(script).resolve()
    words = list(sys.argv[1:] if argv is None else argv)
    if "--smoke" in words:
        config = dataclasses.replace(config, **SMOKE)
    if shutil.get_terminal_size().columns < 20:  # tyro would look for a line break for ever
        os.environ["COLUMNS"] = "20"
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(words_of)
    args, unknown = tyro.cli(
        kind,
        prog=path.name,
        description=f"{description}\nv1, v2: the versions of arXiv 2301.04104; authors: their code",
        args=words,
        default=kind(**dataclasses.asdict(config), script=path),
        return_unknown_args=True,
        registry=registry,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if unknown:
        fail(unknown_flag(unknown[0], kind), status=2)
    try:
        out = None if args.out is None else full_path(str(args.out))
        args = dataclasses.replace(args, out=out, **dataclasses.asdict(args.config))  # checked
        if args.tensorboard:
            need_tensorboard()
    except (ValueError, argparse.ArgumentTypeError) as error:
        fail(str(error), status=2)

    called = sys.argv[0] if argv is None else str(path)
    again = [str(short(Path(sys.executable))), called, *words]
    again += [] if args.resume else ["--resume"]
    return dataclasses.replace(args, resume_command=shlex.join(again))


def unknown_flag(word: str, kind: type[Args]) -> str:
    """A sentence about a flag that does not exist, naming those that do."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    flags = [f"--{name}" for name in names if name not in ("script", "resume-command")]
    word = word.partition("=")[0]
    close = difflib.get_close_matches(word, flags, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no flag {word}{hint}; the flags are {', '.join(flags)}"


def run(main: Callable[..., int | None], *args: Args) -> NoReturn:
    """Call `main(*args)` and end the program. Ctrl-C ends with the command that resumes (exit
    status 130; of another signal 128 and its number); what the package or the system refuses ends
    with its one sentence (status 1); anything else is a defect and keeps its traceback."""
    try:
        for path in sorted((ASSETS / "results").rglob("*.json")):
            read_json(path)  # better now than after hours
        sys.exit(main(*args))
    except KeyboardInterrupt as error:
        again = args[0].resume_command if args else "the same command, without --fresh"
        print(f"\nInterrupted. To go on:\n    {again}")
        sys.exit(128 + (error.args or (signal.SIGINT,))[0])
    except (ValueError, FloatingPointError, OSError, gym.error.Error) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = raised_in.parent in (ROOT / "dreamer", ROOT / "lab")
        if not ours and not isinstance(error, OSError | gym.error.Error):
            raise
        fail(str(error), status=1)


def read_json(path: Path, *keys: str) -> dict[str, Any] | None:
    """An object with these keys; None where there is no file. Raises ValueError if damaged."""
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and all(key in value for key in keys):
            return value
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    raise ValueError(f"{path} is damaged: {REMEDY}")


def short(path: Path) -> Path:
    """The path as the user would type it from where they are."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def fail(message: str, status: int) -> NoReturn:
    """Print one sentence to stderr and end the program."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
