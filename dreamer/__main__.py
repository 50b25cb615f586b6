"""Watch a trained agent in a window: python -m dreamer watch AGENT --env ID."""

import argparse
import sys
from pathlib import Path

import gymnasium as gym

from dreamer import evaluate, load_agent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dreamer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="watch")
    watch = commands.add_parser("watch", help="whole episodes of the greedy agent, in a window")
    watch.add_argument("agent", type=Path, help="an agent.pt, or a checkpoint.pt")
    watch.add_argument("--env", required=True, help="id of the environment, such as CartPole-v1")
    watch.add_argument("--episodes", type=int, default=3)
    watch.add_argument("--seed", type=int, default=0, help="of the first episode")
    args = parser.parse_args()
    try:
        agent = load_agent(args.agent, "cpu")
        for seed in range(args.seed, args.seed + args.episodes):
            (ret,) = evaluate(agent, args.env, 1, seed, render_mode="human")
            print(f"episode {seed}: return {ret:.1f}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, gym.error.Error) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
