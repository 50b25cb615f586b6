"""Train, watch and evaluate an agent on any Gymnasium environment.

python -m dreamer check --env Hopper-v5                    what to know before training
python -m dreamer train --env Hopper-v5 --steps 30000      every field of Config is a flag
python -m dreamer evaluate runs/Hopper-v5/seed0/agent.pt
python -m dreamer watch runs/Hopper-v5/seed0/agent.pt      in a window
"""

import argparse
import dataclasses
import os
import sys
import typing
from pathlib import Path

import numpy as np

from dreamer import Config, evaluate, load_agent, train
from dreamer.check import check
from dreamer.resume import agent_env
from dreamer.run import tune_cpu


def main() -> None:
    args = parse_arguments()
    try:
        args.command(args)
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:  # Gymnasium's own, such as an unknown id
        if not type(error).__module__.startswith("gymnasium"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dreamer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{check,train,evaluate,watch}")
    for command in (check_command, train_command):
        sub = commands.add_parser(command.__name__.removesuffix("_command"), help=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument("--env", required=True, help="id of the environment, or module:id")
        if command is train_command:
            sub.add_argument("--run-dir", type=Path, help="default: runs/<env>/seed<seed>")
            sub.add_argument("--resume", action="store_true", help="go on from its checkpoint")
            sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
            sub.add_argument("--tensorboard", action="store_true")
        types = typing.get_type_hints(Config)
        for field in dataclasses.fields(Config):  # a whole number may be written as 1e4
            kind = str if typing.get_origin(types[field.name]) is typing.Literal else float
            flag = f"--{field.name.replace('_', '-')}"
            sub.add_argument(flag, type=kind, default=field.default, metavar=str(field.default))
    for command in (evaluate_command, watch_command):
        sub = commands.add_parser(command.__name__.removesuffix("_command"), help=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument("agent", type=Path, help="an agent.pt, or a checkpoint.pt")
        sub.add_argument("--env", help="id of the environment, if not the one of its training")
        sub.add_argument("--episodes", type=int, default=3 if command is watch_command else 100)
        sub.add_argument("--seed", type=int, default=0, help="of the first episode")
    return parser.parse_args()


def config_of(args: argparse.Namespace) -> Config:
    return Config(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Config)})


def check_command(args: argparse.Namespace) -> None:
    """what to know of an environment before training"""
    for what, found in check(args.env, config_of(args)):
        print(f"{what:16} {found}", flush=True)


def train_command(args: argparse.Namespace) -> None:
    """train an agent"""
    config = config_of(args)
    name = args.env.rpartition(":")[2].replace("/", "-")
    folder = args.run_dir or Path("runs") / name / f"seed{config.seed}"
    run = train(args.env, config, folder, args.resume, args.device, tensorboard=args.tensorboard)
    agent = run.run_dir / "agent.pt"
    agent = agent.relative_to(Path.cwd()) if agent.is_relative_to(Path.cwd()) else agent
    if run.evals:
        last = run.evals[-1]
        print(f"return {last['return']:.1f} in the evaluation at step {last['step']:,}")
    print(
        f"Agent:     {agent}\n"
        f"Judge it:  python -m dreamer evaluate {agent}\n"
        f"Watch it:  python -m dreamer watch {agent}"
    )


def evaluate_command(args: argparse.Namespace) -> None:
    """greedy episodes on fresh seeds"""
    tune_cpu()
    agent = load_agent(args.agent, "cpu")
    env = args.env or agent_env(args.agent)
    returns, found = evaluate(agent, env, args.episodes, args.seed, details=True)
    success = f", success {found['success']:.0%}" if "success" in found else ""
    print(
        f"{env}: return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} episodes "
        f"(worst {returns.min():.1f}, best {returns.max():.1f}), {found['length']:.0f} steps each"
        f"{success}"
    )


def watch_command(args: argparse.Namespace) -> None:
    """whole episodes in a window, or in a GIF where there is no display"""
    tune_cpu()
    agent = load_agent(args.agent, "cpu")
    env = args.env or agent_env(args.agent)
    window = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    )
    if window:
        for seed in range(args.seed, args.seed + args.episodes):
            (ret,) = evaluate(agent, env, 1, seed, render_mode="human")
            print(f"episode {seed}: return {ret:.1f}")
        return
    from dreamer.evaluation import film

    ret, frames = film(agent, env, args.seed)
    path = args.agent.with_suffix(".gif")
    write_gif(frames, path)
    print(f"no display here: episode {args.seed}, return {ret:.1f}, is in {path}")


def write_gif(frames: list[np.ndarray], path: Path) -> None:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("no display here, and a GIF needs `pip install pillow`") from None
    first, *rest = (Image.fromarray(frame).quantize(64) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=40, loop=0, optimize=True)


if __name__ == "__main__":
    main()
