"""Model-free baselines: PPO, DQN and SAC of Stable-Baselines3, as RL Baselines3 Zoo tuned them.

They are judged as Dreamer is: greedy episodes on fresh environments with seeds of their own, at
environment steps that suit a logarithmic axis. `run(settings("CartPole-v1", "ppo", seed=0))` is
one run, in the format of assets/results. Only then is Stable-Baselines3 needed.
"""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.envs import MakeEnv
from dreamer.evaluation import EVALUATION
from dreamer.machine import tune_cpu
from dreamer.utils import derive_seed
from lab.results import cpu_name, significant

INSTALLED = importlib.util.find_spec("stable_baselines3") is not None
BASELINE = 40  # stream of random numbers for `derive_seed`: a baseline's whole training
ZOO = json.loads(Path(__file__).with_name("zoo.json").read_text())["tasks"]  # env_id -> method


def settings(env_id: str, method: str, seed: int, smoke: bool = False) -> dict[str, Any]:
    """Everything that a run depends on, as plain JSON values: how it is judged, and the Zoo's
    hyperparameters of this task and method. smoke: it is over in seconds."""
    return {
        "env_id": env_id,
        "method": method,
        "seed": seed,
        "first_eval": 100 if smoke else 500,  # environment steps
        "evals": 2 if smoke else 25,
        "eval_episodes": 2 if smoke else 20,
        "final_episodes": 2 if smoke else 100,
        "hyperparameters": ZOO[env_id][method] | ({"n_timesteps": 300} if smoke else {}),
    }


def run(config: dict[str, Any], env: MakeEnv | None = None) -> dict[str, Any]:
    """Train and judge, on one thread; the run's entry in a results file (`results.py`).

    config: from `settings`. env: makes the environment where that is not just `config["env_id"]`.
    Minutes, by the wall and the processor, are those of training: the clock stands still while a
    policy is judged. The last evaluation is when training has ended: PPO trains whole rollouts, a
    little beyond its steps.
    """
    import stable_baselines3

    tune_cpu()
    env, seed = env or config["env_id"], config["seed"]
    model = make_model(config, env)
    steps = config["hyperparameters"]["n_timesteps"]
    due = np.geomspace(config["first_eval"], steps, config["evals"]).round().tolist()[:-1]
    rows: list[dict[str, Any]] = []
    started = now()

    def judge() -> None:
        nonlocal started
        paused, step = now(), model.num_timesteps
        mean = significant(evaluate(model, env, config["eval_episodes"], seed, step).mean())
        minutes = significant((paused - started)[0] / 60)
        rows.append({"kind": "eval", "step": step, "return": mean, "minutes": minutes})
        started = started + now() - paused

    def after_step(*_: Any) -> bool:
        if due and model.num_timesteps >= due[0]:
            due[:] = [step for step in due if step > model.num_timesteps]
            judge()
        return True  # go on

    model.learn(steps, callback=after_step)
    minutes, cpu_minutes = map(significant, (now() - started) / 60)
    judge()
    final_returns = evaluate(model, env, config["final_episodes"], seed)
    return {
        "seed": seed,
        "config": config,
        "stable_baselines3": stable_baselines3.__version__,
        "env_steps": model.num_timesteps,
        "minutes": minutes,
        "cpu_minutes": cpu_minutes,
        "cpu": cpu_name(),
        "curve": {"env_steps": [r["step"] for r in rows], "return": [r["return"] for r in rows]},
        "final_returns": [significant(value) for value in final_returns],
        "diagnostics": rows,
    }


def make_model(config: dict[str, Any], env: MakeEnv) -> Any:
    """The algorithm with its training environments, normalised where the Zoo does so."""
    import stable_baselines3
    from stable_baselines3.common import env_util, utils, vec_env

    arguments = dict(config["hyperparameters"])
    arguments.pop("n_timesteps")
    envs = env_util.make_vec_env(env, arguments.pop("n_envs", 1))
    if arguments.pop("normalize", False):
        envs = vec_env.VecNormalize(envs, gamma=arguments["gamma"])
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith("lin_"):
            arguments[name] = utils.LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    seed = derive_seed(config["seed"], BASELINE)  # environment i starts from seed + i
    algorithm = getattr(stable_baselines3, config["method"].upper())
    return algorithm("MlpPolicy", envs, seed=seed, device="cpu", **arguments)


def evaluate(model: Any, env: MakeEnv, episodes: int, *seed: int) -> np.ndarray:
    """Undiscounted returns (episodes,) of greedy episodes, each in a fresh environment.

    The environments' seeds are derived from `seed`, on a stream that training never uses.
    Observations are normalised by the statistics of training, which stay as they are.
    """
    from stable_baselines3.common import env_util, evaluation, vec_env

    envs = env_util.make_vec_env(env, episodes, seed=derive_seed(*seed, EVALUATION))
    training = model.get_vec_normalize_env()
    if training is not None:
        envs = vec_env.VecNormalize(envs, training=False, norm_reward=False)
        vec_env.sync_envs_normalization(training, envs)
    returns, _ = evaluation.evaluate_policy(model, envs, episodes, return_episode_rewards=True)
    envs.close()
    return np.array(returns)


def now() -> np.ndarray:
    """Seconds (2,) of the clock on the wall and of this process's processor time."""
    return np.array([time.monotonic(), time.process_time()])
