"""Model-free baselines: PPO, DQN and SAC of Stable-Baselines3, as RL Baselines3 Zoo tuned them.

They are judged as Dreamer is: greedy episodes on fresh environments with seeds of their own, at
environment steps that suit a logarithmic axis. `run(settings("CartPole-v1", "ppo", seed=0))` is
one run, in the format of assets/results. Needs Stable-Baselines3, as nothing else here does.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import stable_baselines3
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from dreamer.envs import EnvSpec
from dreamer.evaluation import EVALUATION
from dreamer.run import tune_cpu
from dreamer.utils import derive_seed
from lab.results import cpu_name, significant

ALGORITHMS = {"ppo": PPO, "dqn": DQN, "sac": SAC}
BASELINE = 40  # stream of random numbers for `derive_seed`: a baseline's whole training

# Hyperparameters of RL Baselines3 Zoo 2.9.2 (Raffin, DLR-RM/rl-baselines3-zoo), from its files
# hyperparams/ppo.yml, dqn.yml and sac.yml, complete and unchanged. "lin_x" falls linearly from
# x to 0 over the run; `n_timesteps`, `n_envs` and `normalize` are the Zoo's own words, the others
# arguments of the algorithm, whose defaults hold for what is not named.
OFF_POLICY = {  # the Zoo has the same for Acrobot and LunarLander
    "n_timesteps": 100_000,
    "learning_rate": 6.3e-4,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 0,
    "gamma": 0.99,
    "target_update_interval": 250,
    "train_freq": 4,
    "gradient_steps": -1,
    "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1,
    "policy_kwargs": {"net_arch": [256, 256]},
}
ZOO: dict[str, dict[str, dict[str, Any]]] = {
    "CartPole-v1": {
        "ppo": {
            "n_timesteps": 100_000,
            "n_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": "lin_0.001",
            "clip_range": "lin_0.2",
        },
        "dqn": {
            "n_timesteps": 50_000,
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    },
    "Pendulum-v1": {
        "ppo": {
            "n_timesteps": 100_000,
            "n_envs": 4,
            "n_steps": 1_024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        "sac": {"n_timesteps": 20_000, "learning_rate": 1e-3},
    },
    "Acrobot-v1": {
        "ppo": {
            "n_timesteps": 1_000_000,
            "normalize": True,
            "n_envs": 16,
            "n_steps": 256,
            "gae_lambda": 0.94,
            "gamma": 0.99,
            "n_epochs": 4,
            "ent_coef": 0.0,
        },
        "dqn": OFF_POLICY,
    },
    "LunarLander-v3": {
        "ppo": {
            "n_timesteps": 1_000_000,
            "n_envs": 16,
            "n_steps": 1_024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
        "dqn": OFF_POLICY,
    },
}


def settings(env_id: str, method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Everything that a run depends on, as plain JSON values: how it is judged, and the Zoo's
    hyperparameters of this task and method. `changes` win."""
    return {
        "env_id": env_id,
        "method": method,
        "seed": seed,
        "first_eval": 500,  # environment steps
        "evals": 25,
        "eval_episodes": 20,
        "final_episodes": 100,
        "hyperparameters": ZOO[env_id][method],
        **changes,
    }


def run(config: dict[str, Any], env: EnvSpec | None = None) -> dict[str, Any]:
    """Train and judge; the run's entry in a results file (`results.py`).

    config: from `settings`. env: a function that makes the environment, where that is not just
    `config["env_id"]`. One thread. Minutes, of the clock on the wall and of the processor, are
    those of training: evaluations do not count.
    """
    tune_cpu()
    env = env or config["env_id"]
    steps = config["hyperparameters"]["n_timesteps"]
    evaluations = Evaluations(
        config, env, eval_schedule(config["first_eval"], steps, config["evals"])
    )
    model = make_model(config, env)
    model.learn(steps, callback=evaluations)
    minutes, cpu_minutes = evaluations.minutes()
    rows = evaluations.rows
    final_returns = evaluate(model, env, config["final_episodes"], config["seed"])
    return {
        "seed": config["seed"],
        "config": config,
        "stable_baselines3": stable_baselines3.__version__,
        "env_steps": model.num_timesteps,
        "minutes": significant(minutes),
        "cpu_minutes": significant(cpu_minutes),
        "cpu": cpu_name(),
        "curve": {
            "env_steps": [row["step"] for row in rows],
            "return": [row["return"] for row in rows],
        },
        "final_returns": [significant(value) for value in final_returns],
        "diagnostics": rows,
    }


def make_model(config: dict[str, Any], env: EnvSpec) -> BaseAlgorithm:
    """The algorithm with its training environments, normalised where the Zoo does so."""
    arguments = dict(config["hyperparameters"])
    arguments.pop("n_timesteps")
    envs = make_vec_env(env, arguments.pop("n_envs", 1))
    if arguments.pop("normalize", False):
        envs = VecNormalize(envs, gamma=arguments["gamma"])
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith("lin_"):
            arguments[name] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    seed = derive_seed(config["seed"], BASELINE)  # environment i starts from seed + i
    return ALGORITHMS[config["method"]]("MlpPolicy", envs, seed=seed, device="cpu", **arguments)


def eval_schedule(first: int, last: int, count: int) -> list[int]:
    """`count` environment steps from `first` to `last`, each a constant factor after the one
    before."""
    return np.geomspace(first, last, count).round().astype(int).tolist()


def evaluate(model: BaseAlgorithm, env: EnvSpec, episodes: int, *seed: int) -> np.ndarray:
    """Undiscounted returns (episodes,) of greedy episodes, each in a fresh environment.

    The environments' seeds are derived from `seed`, on a stream that training never uses.
    Observations are normalised by the statistics of training, which stay as they are.
    """
    envs: VecEnv = make_vec_env(env, episodes, seed=derive_seed(*seed, EVALUATION))
    training = model.get_vec_normalize_env()
    if training is not None:
        envs = VecNormalize(envs, training=False, norm_reward=False)
        sync_envs_normalization(training, envs)
    returns, _ = evaluate_policy(model, envs, episodes, return_episode_rewards=True)
    envs.close()
    return np.array(returns)


class Evaluations(BaseCallback):
    """Greedy evaluations in the course of training, and a clock that stands still meanwhile.

    steps: environment steps after which to evaluate, the last one when training has ended (PPO
    trains whole rollouts, a little beyond its steps). rows: one for each evaluation, as in the log
    of a run of ours.
    """

    def __init__(self, config: dict[str, Any], env: EnvSpec, steps: list[int]):
        super().__init__()
        self.config, self.env, self.due = config, env, steps[:-1]
        self.rows: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.started = now()

    def _on_step(self) -> bool:
        if self.due and self.num_timesteps >= self.due[0]:
            self.due = [step for step in self.due if step > self.num_timesteps]
            self.evaluate()
        return True

    def _on_training_end(self) -> None:
        self.evaluate()

    def minutes(self) -> np.ndarray:
        """Minutes of training so far, (2,): by the clock on the wall and of the processor."""
        return (now() - self.started) / 60

    def evaluate(self) -> None:
        paused = now()
        minutes = (paused - self.started)[0] / 60
        step, episodes = self.model.num_timesteps, self.config["eval_episodes"]
        returns = evaluate(self.model, self.env, episodes, self.config["seed"], step)
        mean = significant(returns.mean())
        self.rows.append(
            {"kind": "eval", "step": step, "return": mean, "minutes": significant(minutes)}
        )
        self.started += now() - paused


def now() -> np.ndarray:
    """Seconds (2,) of the clock on the wall and of this process's processor time."""
    return np.array([time.monotonic(), time.process_time()])
