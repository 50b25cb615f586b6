"""DreamerV3 from scratch: learn a world model, dream in it, learn to act from the dreams.

In reading order, each file importing from those above it only:

    utils, networks, rssm, replay_buffer, config, agent    the algorithm
    checkpoint, spaces, envs, evaluation, run, resume, tensorboard, training, check    the rest
"""

from dreamer.agent import DreamerAgent
from dreamer.config import Config
from dreamer.envs import AgentEnv
from dreamer.evaluation import evaluate
from dreamer.resume import load_agent, save_agent
from dreamer.training import train

__all__ = ["AgentEnv", "Config", "DreamerAgent", "evaluate", "load_agent", "save_agent", "train"]
