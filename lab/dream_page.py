"""The playable dream page: what docs/dream needs of the trained agents.

    python -m lab.dream_page          writes docs/dream/agents/*.js and the links of index.html
    python -m lab.dream_page --check  writes nothing; fails where they are not what it would write
    python -m lab.dream_page --picture assets/dream_page.png
                                      takes the README's picture of it, in Chromium

One file a task: the weights that acting and dreaming need, as whole numbers from -127 to 127 with
a scale for each row, and for LunarLander, whose simulator is not rebuilt in JavaScript, recorded
episodes. It is a script that calls `dreamAgent(...)`, because a page that was opened from a folder
may load scripts but no data.

The weights depend on the agent's file alone. Of the recordings `--check` plays the actions again,
as an agent's own choices may differ in the last digit from processor to processor.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lab.cli import ASSETS, ROOT, short
import numpy as np
from PIL import Image
from torch import Tensor

from dreamer import AgentEnv, DreamerAgent, load_agent
from dreamer.checkpoint import write_atomic
from dreamer.evaluation import check_fit, greedy_policy, play
from dreamer.utils import derive_seed

PAGE = ROOT / "docs" / "dream"
SOURCE = "https://github.com/DrunkJin/dreamer-from-scratch/blob/main"
RECORDING = 50  # stream of random numbers


class Task(NamedTuple):
    env_id: str
    recordings: int = 0  # episodes, for what is not rebuilt in JavaScript


TASKS = {
    "cartpole": Task("CartPole-v1"),
    "pendulum": Task("Pendulum-v1"),
    "acrobot": Task("Acrobot-v1"),
    "lunar_lander": Task("LunarLander-v3", recordings=6),
}
PARTS = "encoder", "rssm", "decoder", "reward", "cont", "actor", "critic"  # that the page runs
NORM = "encoder.norm.mean", "encoder.norm.std"  # all that it needs of the observation's norm


# ---------------------------------------------------------------- weights


def base64_of(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(little.tobytes()).decode("ascii")


def pack_tensor(tensor: Tensor, rounded: bool) -> dict[str, Any]:
    """Shape and numbers. rounded: a matrix becomes whole numbers, the largest of a row being 127,
    and a scale for each row; vectors are few and stay as they are."""
    values = tensor.detach().cpu().float().numpy()
    packed: dict[str, Any] = {"shape": list(values.shape)}
    if not rounded or values.ndim != 2:
        return packed | {"floats": base64_of(values)}
    scale = np.maximum(np.abs(values).max(1), np.float32(1e-12)) / np.float32(127)
    whole = np.rint(values / scale[:, None]).astype(np.int8)
    return packed | {"whole": base64_of(whole), "scales": base64_of(scale)}


def pack(agent: DreamerAgent, rounded: bool = True) -> dict[str, Any]:
    """All that the page needs of an agent, as plain data. Raises ValueError for one that it could
    not run."""
    if any(agent.obs_parts) or agent.masked or len(agent.segments) > 1:
        raise ValueError("the page runs agents that observe plain numbers and choose one action")
    config = agent.config
    needed = {
        name: tensor
        for name, tensor in agent.state_dict().items()
        if name.split(".")[0] in PARTS and (".norm." not in name or name in NORM)
    }
    return {
        "repeat": config.action_repeat,
        "horizon": config.imag_horizon,
        "sizes": {
            "deter": config.deter,
            "categoricals": config.categoricals,
            "classes": config.classes,
            "action": agent.action_size,
            "discrete": agent.discrete,
            "mix": config.unimix,
            "limit": agent.encoder.norm.limit,
        },
        "tensors": {name: pack_tensor(tensor, rounded) for name, tensor in needed.items()},
    }


# ---------------------------------------------------------------- recordings


def episode_seed(number: int) -> int:
    return derive_seed(0, RECORDING, number)


def record(agent: DreamerAgent, task: Task) -> list[dict[str, Any]]:
    """Real episodes of the greedy agent."""
    env, episodes = AgentEnv(task.env_id, agent.config.action_repeat), []
    for number in range(task.recordings):
        seed = episode_seed(number)
        rows = play(env, greedy_policy(agent, seed), seed)
        episodes.append(
            {
                "obs": [[round(float(x), 4) for x in row] for row in rows["obs"]],
                "action": rows["action"].argmax(1).tolist(),
                "reward": [round(float(x), 3) for x in rows["reward"]],
                "terminated": bool(rows["cont"][-1] == 0),
            }
        )
    env.close()
    return episodes


def really_happens(episodes: list[dict[str, Any]], task: Task, repeat: int) -> bool:
    """Whether the recorded actions lead to the recorded observations, rewards and ends."""
    if len(episodes) != task.recordings:
        return False
    with contextlib.closing(AgentEnv(task.env_id, repeat)) as env:
        for number, episode in enumerate(episodes):
            obs, rewards, terminated = [env.reset(episode_seed(number))], [0.0], False
            for action in episode["action"][:-1]:
                row = env.step(np.eye(env.action_size, dtype=np.float32)[action])
                obs, rewards, terminated = [*obs, row[0]], [*rewards, row[1]], row[2]
            same_length = len(obs) == len(episode["obs"]) == len(episode["reward"])
            if not (
                same_length
                and terminated == episode["terminated"]
                and np.allclose(obs, episode["obs"], atol=1e-3)
                and np.allclose(rewards, episode["reward"], atol=1e-2)
            ):
                return False
    return True


# ---------------------------------------------------------------- files


def script(name: str, packed: dict[str, Any]) -> str:
    """The file of an agent: a call, with a line for each tensor and each episode."""
    text = json.dumps(packed, separators=(",", ":"), allow_nan=False)
    text = re.sub(r'("[\w.]+":\{"shape"|\{"obs":)', r"\n\1", text)
    return f'dreamAgent("{name}",{text});\n'


def read_script(text: str) -> dict[str, Any]:
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def line_of(path: str, name: str) -> int:
    """Line of a module on which a class, function, method or attribute is defined: `Class.name`."""
    nodes: list[Any] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    line = 1
    for part in name.split("."):
        named = [n for n in nodes if part in (getattr(n, "name", None), target_of(n))]
        if not named:
            raise ValueError(f"{path} has no {name}, to which the page links")
        line, nodes = named[0].lineno, getattr(named[0], "body", [])
    return line


def target_of(node: ast.AST) -> str | None:
    return getattr(node.target, "id", None) if isinstance(node, ast.AnnAssign) else None


def with_links(page: str) -> str:
    """The page with each link to code (data-code="path:Class.name") on the line where that is."""

    def link(found: re.Match) -> str:
        path, _, name = found[1].partition(":")
        return f'data-code="{found[1]}" href="{SOURCE}/{path}#L{line_of(path, name)}"'

    return re.sub(r'data-code="([^"]+)"\s+href="[^"]*"', link, page)


def files(agents: Path, committed: Path) -> dict[Path, str]:
    """All that the command writes: path below the page's folder -> content. A recording in the
    `committed` page that agrees with its agent's weights and with reality stays as it is."""
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    made = {Path("index.html"): with_links(index)}
    for name, task in TASKS.items():
        agent = load_agent(agents / f"{name}.pt", "cpu")
        env = AgentEnv(task.env_id)
        check_fit(agent, env)
        env.close()
        packed, path = pack(agent), Path("agents") / f"{name}.js"
        if task.recordings:
            old = read_script((committed / path).read_text()) if (committed / path).exists() else {}
            episodes = old.pop("episodes", [])
            keep = old == packed and really_happens(episodes, task, agent.config.action_repeat)
            packed["episodes"] = episodes if keep else record(agent, task)
        made[path] = script(name, packed)
    return made


# ---------------------------------------------------------------- its picture

PENDULUM = """() => {
  toggle("paused", true);
  let seed = 8; // the same dream each time
  session.random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  panel.clear();
  begin();
  for (let i = 0; i < 26; i++) step(); // it swings up
  toggleGhosts();
  toggleSleep();
  for (let i = 0; i < 18; i++) step(); // and goes on with its eyes shut
  toggle("paused", false);
  settings.speed = 0; // nothing moves any more
}"""


def take_picture(page: Path, target: Path) -> None:
    """A screenshot of the page in `page`: Pendulum, asleep, with ghosts."""
    from playwright.sync_api import sync_playwright  # of requirements-dev.txt

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1120, "height": 1400})
        tab.goto((page / "index.html").resolve().as_uri() + "#pendulum")
        tab.wait_for_function("session !== null")
        tab.evaluate(PENDULUM)
        tab.wait_for_timeout(1000)  # colours glide
        top = tab.locator(".stage").bounding_box()["y"]
        bottom = tab.locator(".latent").bounding_box()
        height = bottom["y"] + bottom["height"] - top
        clip = {"x": 24, "y": top - 12, "width": 1072, "height": height + 24}
        picture = Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB")
        browser.close()
    every = Image.Quantize.MAXCOVERAGE  # no colour is lost, were it ever so rare
    small = picture.quantize(256, every, dither=Image.Dither.NONE)
    write_atomic(target, lambda part: small.save(part, "PNG", optimize=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.dream_page", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--agents", type=Path, default=ASSETS / "agents", help="folder of *.pt")
    parser.add_argument("--out", type=Path, default=PAGE, help="folder of the page")
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--picture", type=Path, help="only take a picture of the page, to here")
    args = parser.parse_args(argv)
    if args.picture:
        return take_picture(args.out, args.picture)
    different = 0
    for path, text in files(args.agents, args.out).items():
        target = args.out / path
        same = target.exists() and target.read_text(encoding="utf-8") == text
        different += not same
        if not args.check:
            write_atomic(target, lambda part, text=text: part.write_text(text, encoding="utf-8"))
        size = f"{len(text) / 1e6:.2f} MB, {'unchanged' if same else 'changed'}"
        print(f"{short(target)}: {size}")
    if args.check and different:
        sys.exit("The page is not what `python -m lab.dream_page` writes: run it.")


if __name__ == "__main__":
    main()
