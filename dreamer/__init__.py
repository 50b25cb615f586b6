"""DreamerV3 from scratch: learn a world model, dream in it, learn to act from the dreams.

In reading order, each file importing from those above it only: the algorithm, then what runs it.

    utils, networks, rssm, replay_buffer, config, agent
    machine, checkpoint, envs, evaluation, tensorboard, resume, run, training, check, cli, plot
"""

from dreamer.agent import DreamerAgent
from dreamer.checkpoint import load_agent, save_agent
from dreamer.config import Config
from dreamer.envs import AgentEnv
from dreamer.evaluation import evaluate
from dreamer.replay_buffer import Layout
from dreamer.training import train

__version__ = "1.0.0"
__all__ = [
    "AgentEnv",
    "Config",
    "DreamerAgent",
    "Layout",
    "evaluate",
    "load_agent",
    "save_agent",
    "train",
]
