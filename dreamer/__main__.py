"""Train, watch and evaluate an agent in any Gymnasium environment.

    python -m dreamer check --env Hopper-v5
    python -m dreamer train --env Hopper-v5 --steps 30000
    python -m dreamer evaluate runs/Hopper-v5/seed0/agent.pt
    python -m dreamer watch runs/Hopper-v5/seed0/agent.pt
    python -m dreamer plot runs/Hopper-v5/seed0 runs/Hopper-v5/seed1

`train --help` lists every setting.
"""

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro
from tqdm import tqdm

from dreamer import DreamerAgent, evaluate, load_agent, train
from dreamer.check import check
from dreamer.cli import ConfigFlags, parse
from dreamer.envs import MakeEnv, make_envs
from dreamer.evaluation import env_of, evaluate_in, film
from dreamer.machine import tune_cpu
from dreamer.plot import plot_returns


@dataclass(frozen=True, kw_only=True)
class Check(ConfigFlags):
    """What to know of an environment before training: spaces, rewards, what a run will take."""

    env: str  # id of the environment, or module:id

    def main(self) -> None:
        for what, found in check(self.env, self.config):
            print(f"{what:16} {found}", flush=True)


@dataclass(frozen=True)
class Train(ConfigFlags):
    """Train an agent. v1, v2: the versions of arXiv 2301.04104; authors: their code."""

    env: str | None = None  # id of the environment, or module:id (--resume knows it)
    run_dir: Path | None = None  # default: runs/<env>/seed<seed>
    resume: bool = False  # go on from run_dir's checkpoint, if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    tensorboard: bool = False  # write TensorBoard's curves too, where it is installed

    def main(self) -> None:
        env, folder = self.env or self.known_env(), self.run_dir
        if folder is None:
            name = str(self.env).rpartition(":")[2].replace("/", "-")
            folder = Path("runs") / name / f"seed{self.config.seed}"
        try:
            more = {"tensorboard": self.tensorboard}
            run = train(env, self.config, folder, self.resume, self.device, **more)
        except KeyboardInterrupt:
            words = sys.argv[1:] + ([] if self.resume else ["--resume"])
            print(f"Stopped. To go on: python -m dreamer {shlex.join(words)}", file=sys.stderr)
            raise
        if run.evals:
            last = run.evals[-1]
            print(f"return {last['return']:.1f} in the evaluation at step {last['step']:,}")
        agent = shlex.quote(os.path.relpath(run.run_dir / "agent.pt"))
        print(f"Judge it:  python -m dreamer evaluate {agent}")
        print(f"Watch it:  python -m dreamer watch {agent}")
        with contextlib.suppress(ImportError):  # matplotlib is not needed to train
            plot_returns([run.run_dir], picture := run.run_dir / "returns.png")
            print(f"Returns:   {os.path.relpath(picture)}")

    def known_env(self) -> MakeEnv:
        """What the checkpoint says."""
        if not (self.resume and self.run_dir):
            raise ValueError("--env is needed, or --resume with --run-dir")
        return env_of(load_agent(self.run_dir / "checkpoint.pt", "cpu"))


@dataclass(frozen=True)
class Evaluate:
    """Greedy episodes on fresh seeds."""

    agent: tyro.conf.Positional[Path]  # an agent.pt, a checkpoint.pt, or cartpole, pendulum, ...
    env: str | None = None  # id of the environment, if it is not the one of its training
    episodes: int = 100
    envs: int = 20  # environments that play at once
    seed: int = 0  # of the episodes

    def main(self) -> None:
        tune_cpu()
        agent = load_agent(self.agent, "cpu")
        envs = make_envs(self.env or env_of(agent), min(self.episodes, self.envs), agent.config)
        with contextlib.closing(envs), tqdm(total=self.episodes, unit="episode") as bar:
            returns, stats = evaluate_in(
                agent, envs, self.episodes, self.seed, progress=lambda n: bar.update(n - bar.n)
            )
            name = envs.get_attr("name")[0]
        success = f", success {stats['success']:.0%}" if "success" in stats else ""
        print(
            f"{name}: return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} "
            f"episodes (worst {returns.min():.1f}, best {returns.max():.1f}), "
            f"{stats['length']:.0f} steps each{success}"
        )


@dataclass(frozen=True)
class Watch:
    """Whole episodes in a window, or in a GIF where none opens."""

    agent: tyro.conf.Positional[Path]  # an agent.pt, a checkpoint.pt, or cartpole, pendulum, ...
    env: str | None = None  # id of the environment, if it is not the one of its training
    episodes: int = 3
    seed: int = 0  # of the first episode
    gif: Path | None = None  # a file for the episodes, and no window

    def main(self) -> None:
        tune_cpu()
        agent = load_agent(self.agent, "cpu")
        env = self.env or env_of(agent)
        displays = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        window = sys.platform in ("win32", "darwin") or any(map(os.environ.get, displays))
        if window and not self.gif:
            for seed in range(self.seed, self.seed + self.episodes):
                (ret,) = evaluate(agent, env, 1, seed, render_mode="human")
                print(f"episode {seed}: return {ret:.1f}", flush=True)
        else:
            self.film(agent, env)

    def film(self, agent: DreamerAgent, env: MakeEnv) -> None:
        """A GIF where --gif says, or in the run's folder, or in runs/ for another's agent."""
        from PIL import Image  # of requirements.txt; nothing else needs it

        own = (self.agent.parent / "config.json").exists()
        gif = self.agent if own else Path("runs").absolute() / self.agent.name
        gif = (self.gif or gif).with_suffix(".gif")
        print(f"the episodes are filmed into {gif}", flush=True)
        os.environ |= {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}  # no devices
        pictures = []
        for seed in range(self.seed, self.seed + self.episodes):
            ret, frames = film(agent, env, seed)
            times = max(1, 200 // max(frames[0].shape))  # small ones are enlarged
            large = (frame.repeat(times, 0).repeat(times, 1) for frame in frames)
            pictures += [Image.fromarray(frame).quantize(64) for frame in large]
            print(f"episode {seed}: return {ret:.1f}", flush=True)
        gif.parent.mkdir(parents=True, exist_ok=True)
        look: dict[str, Any] = {"save_all": True, "duration": 40, "loop": 0, "optimize": True}
        pictures[0].save(gif, append_images=pictures[1:], **look)


@dataclass(frozen=True)
class Plot:
    """Returns of several runs in one figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders of runs
    out: Path = Path("runs/returns.png")  # the figure

    def main(self) -> None:
        if not self.runs:
            raise ValueError("plot needs folders of runs, such as runs/CartPole-v1/seed0")
        plot_returns(self.runs, self.out)
        print(self.out)


def main() -> None:
    argv = sys.argv[1:] or ["--help"]
    command = parse(
        Check | Train | Evaluate | Watch | Plot, __doc__, argv, prog="python -m dreamer"
    )
    try:
        command.main()
    except gym.error.UnregisteredEnv as error:
        own = "If a file my_env.py registers it, run from its folder with --env my_env:Name-v0"
        sys.exit(f"error: {error} {own}")
    except FileNotFoundError as error:
        sys.exit(f"error: there is no file {error.filename}")
    except (ValueError, FloatingPointError, OSError, ImportError, gym.error.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
