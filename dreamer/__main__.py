"""Train, watch and evaluate an agent on any Gymnasium environment.

python -m dreamer check --env Hopper-v5                    what to know before training
python -m dreamer train --env Hopper-v5 --steps 30000      every field of Config is a flag
python -m dreamer evaluate runs/Hopper-v5/seed0/agent.pt
python -m dreamer watch runs/Hopper-v5/seed0/agent.pt      in a window
"""

import argparse
import contextlib
import dataclasses
import inspect
import os
import re
import shlex
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
from tqdm import tqdm

from dreamer import Config, evaluate, load_agent, train
from dreamer.check import check
from dreamer.envs import EnvFault, make_envs
from dreamer.evaluation import SIDE_BY_SIDE, evaluate_in, film, need_pictures
from dreamer.resume import agent_env
from dreamer.run import tune_cpu
from dreamer.training import Quiet


def main() -> None:
    # What is printed stops nothing: a closed pipe, a terminal that lacks a letter.
    sys.stdout = Quiet(sys.stdout or open(os.devnull, "w"))
    sys.stderr = Quiet(sys.stderr or open(os.devnull, "w"))
    args = parse_arguments()
    try:
        args.command(args)
    except (ValueError, FloatingPointError, OSError, ImportError, gym.error.Error) as error:
        hint = unknown_id(args) if isinstance(error, gym.error.UnregisteredEnv) else ""
        sys.exit(f"error: {error}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)


# ---------------------------------------------------------------- words


def unknown_id(args: argparse.Namespace) -> str:
    """What helps where Gymnasium knows no such environment."""
    if args.env is None:  # the name of a class
        return f" {args.agent} is of an environment without an id: name its id with --env"
    own = f"my_env:{args.env.rpartition(':')[2]}"
    return f" If a file my_env.py registers it, run from its folder with --env {own}"


def parse_arguments() -> argparse.Namespace:
    name, names = "python -m dreamer", "{check,train,evaluate,watch}"
    parser = argparse.ArgumentParser(
        usage=f"{name} {names} ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar=names, prog=name)
    for command in (check_command, train_command, evaluate_command, watch_command):
        judged = command in (evaluate_command, watch_command)
        word, about = command.__name__.removesuffix("_command"), command.__doc__
        usage = f"{name} {word} {'AGENT' if judged else '--env ID'} [options]"
        sub = commands.add_parser(word, usage=usage, help=about, description=about)
        sub.set_defaults(command=command)
        flag = sub.add_argument
        if judged:
            episodes = 3 if command is watch_command else 100
            flag("agent", type=path, metavar="AGENT", help="an agent.pt, or a checkpoint.pt")
            flag("--env", metavar="ID", help="of the environment, if not the one of its training")
            flag(
                "--episodes",
                type=whole(1),
                default=episodes,
                metavar="N",
                help=f"default {episodes}",
            )
            flag("--seed", type=whole(0), default=0, metavar="N", help="of the first episode")
            continue
        flag("--env", required=True, metavar="ID", help="of the environment, or module:id")
        if command is train_command:
            flag("--run-dir", type=path, metavar="PATH", help="default runs/<env>/seed<seed>")
            flag("--resume", action="store_true", help="go on from its checkpoint")
            devices = ["auto", "cpu", "cuda"]
            flag("--device", default="auto", choices=devices, help="auto: a GPU if there is one")
            flag("--tensorboard", action="store_true", help="write TensorBoard's curves too")
        add_config(flag)
    return parser.parse_args()


def add_config(flag: Callable) -> None:
    """A flag for each field of `Config`; its help is the comment behind the field."""
    source, types = inspect.getsource(Config), typing.get_type_hints(Config)
    meaning = dict(re.findall(r"^    (\w+): .+?  # (.+)$", source, re.MULTILINE))
    for field in dataclasses.fields(Config):  # a whole number may be written as 1e4
        names = typing.get_args(types[field.name])
        flag(
            f"--{field.name.replace('_', '-')}",
            type=str if names else float,
            choices=names or None,
            default=field.default,
            metavar=None if names else "N",
            help=f"{meaning[field.name]} (default {field.default})".replace("%", "%%"),
        )


def path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("a path is empty: is a variable of the shell not set?")
    return Path(text)


def whole(low: int) -> Callable[[str], int]:
    """Reads a whole number from `low` on; 1e2 is one."""

    def read(text: str) -> int:
        number = int(float(text)) if re.fullmatch(r"\d+(e\d)?", text) else -1
        if not low <= number < 2**31:
            raise argparse.ArgumentTypeError(f"a whole number from {low} on, not {text!r}")
        return number

    return read


def config_of(args: argparse.Namespace) -> Config:
    return Config(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Config)})


# ---------------------------------------------------------------- commands


def check_command(args: argparse.Namespace) -> None:
    """what to know of an environment before training"""
    lines = textwrap.TextWrapper(80, subsequent_indent=" " * 17, break_on_hyphens=False)
    for what, found in check(args.env, config_of(args)):
        print(lines.fill(f"{what:16} {found}"), flush=True)


def train_command(args: argparse.Namespace) -> None:
    """train an agent (v1, v2: the versions of arXiv 2301.04104; authors: their code)"""
    config = config_of(args)
    name = args.env.rpartition(":")[2].replace("/", "-")
    folder = args.run_dir or Path("runs") / name / f"seed{config.seed}"
    words = sys.argv[1:] + ["--resume"] * (not args.resume)
    again = f"python -m dreamer {shlex.join(words)}"
    try:
        run = train(
            args.env, config, folder, args.resume, args.device, tensorboard=args.tensorboard
        )
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C or SIGTERM; the checkpoint is saved
        print(f"Stopped. To go on: {again}", file=sys.stderr)
        raise
    except EnvFault as error:
        if "resume it when the environment is fixed" not in str(error):
            raise  # there is nothing to go on with
        raise EnvFault(f"{error}: {again}") from error
    agent = run.run_dir / "agent.pt"
    agent = agent.relative_to(Path.cwd()) if agent.is_relative_to(Path.cwd()) else agent
    if run.evals:
        last = run.evals[-1]
        print(f"return {last['return']:.1f} in the evaluation at step {last['step']:,}")
    quoted = shlex.quote(str(agent))
    print(
        f"Agent:     {agent}\n"
        f"Judge it:  python -m dreamer evaluate {quoted}\n"
        f"Watch it:  python -m dreamer watch {quoted}"
    )


def evaluate_command(args: argparse.Namespace) -> None:
    """greedy episodes on fresh seeds"""
    tune_cpu()
    agent, env = load_agent(args.agent, "cpu"), args.env or agent_env(args.agent)
    with contextlib.ExitStack() as stack:
        envs = make_envs(env, min(args.episodes, SIDE_BY_SIDE), agent.config)
        for world in envs:
            stack.callback(world.close)
        bar = stack.enter_context(tqdm(total=args.episodes, unit="episode", file=sys.stderr))
        returns, stats = evaluate_in(
            agent, envs, args.episodes, args.seed, progress=lambda done: bar.update(done - bar.n)
        )
    success = f", success {stats['success']:.0%}" if "success" in stats else ""
    print(
        f"{env}: return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} episodes "
        f"(worst {returns.min():.1f}, best {returns.max():.1f}), {stats['length']:.0f} steps each"
        f"{success}"
    )


def watch_command(args: argparse.Namespace) -> None:
    """whole episodes in a window, or in a GIF where none opens"""
    tune_cpu()
    agent, env = load_agent(args.agent, "cpu"), args.env or agent_env(args.agent)
    display = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    )
    window = display and need_pictures(env, "human")
    gif, pictures = args.agent.with_suffix(".gif"), []
    if not window:
        try:
            from PIL import Image
        except ImportError:
            raise ValueError("no window here, and a GIF needs `pip install pillow`") from None
        quiet = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}  # SDL finds no devices
        os.environ.update({"XDG_RUNTIME_DIR": tempfile.gettempdir(), **quiet, **os.environ})
        need_pictures(env, "rgb_array")
        print(f"no window here: the episodes are filmed into {gif}", flush=True)
    for seed in range(args.seed, args.seed + args.episodes):
        if window:
            (ret,) = evaluate(agent, env, 1, seed, render_mode="human")
        else:
            ret, frames = film(agent, env, seed)
            pictures += [Image.fromarray(frame).quantize(64) for frame in frames]
        print(f"episode {seed}: return {ret:.1f}", flush=True)
    if pictures:
        first, *rest = pictures
        first.save(gif, save_all=True, append_images=rest, duration=40, loop=0, optimize=True)


if __name__ == "__main__":
    main()
