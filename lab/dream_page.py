"""The playable dream page: what docs/dream needs of the trained agents.

    python -m lab.dream_page          writes docs/dream/agents/*.js and the links of index.html
    python -m lab.dream_page --check  writes nothing; fails where they are not what it would write
    python -m lab.dream_page --picture assets/dream_page.png
                                      takes the README's picture of it, in Chromium

One file a task: the weights that acting and dreaming need, as whole numbers of 8 bits (of
6 to 8 for agents of pixels) with a scale for each row, and for LunarLander, whose simulator is not
rebuilt in JavaScript, recorded episodes. It is a script that calls `dreamAgent(...)`, because a
page that was opened from a folder may load scripts but no data.

The weights depend on the agent's file alone. An agent's own choices may differ in the last digit
from processor to processor, so recordings stay as long as the weights do.
"""

import base64
import importlib
import inspect
import io
import json
import operator
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dreamer import AgentEnv, DreamerAgent, load_agent
from dreamer.checkpoint import write_atomic
from dreamer.cli import parse
from dreamer.evaluation import greedy_policy, play
from dreamer.utils import derive_seed
from lab import results
from lab.cli import ASSETS, ROOT, short
from lab.style import save_png

PAGE = ROOT / "docs" / "dream"
SOURCE = "https://github.com/DrunkJin/dreamer-from-scratch/blob/main"
RECORDING = 50  # stream of random numbers
TASKS = {  # name -> environment, number of recorded episodes
    "cartpole": ("CartPole-v1", 0),
    "pendulum": ("Pendulum-v1", 0),
    "acrobot": ("Acrobot-v1", 0),
    "lunar_lander": ("LunarLander-v3", 6),
    "pixel_pendulum": ("lab.pixels:PixelPendulum-v0", 0),
    "pixel_cartpole": ("lab.pixels:PixelCartPole-v0", 0),
}
PARTS = "encoder", "rssm", "decoder", "reward", "cont", "actor", "critic"  # that the page runs
NORM = "encoder.norm.mean", "encoder.norm.std"  # all that it needs of the observation's norm


def base64_of(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def pack_tensor(tensor: Tensor, bits: int | None = None) -> dict[str, Any]:
    """Shape and numbers. bits: a matrix becomes whole numbers of so many bits, the largest of a row
    being 127 with 8, and a scale for each row; vectors are few and stay as they are. The kernels of
    one output of a convolution are a row."""
    values = tensor.detach().cpu().float().numpy()
    packed: dict[str, Any] = {"shape": list(values.shape)}
    if not bits or values.ndim < 2:
        return packed | {"floats": base64_of(values)}
    rows = values.reshape(len(values), -1)
    largest = np.float32(2 ** (bits - 1) - 1)
    scale = np.maximum(np.abs(rows).max(1), np.float32(1e-12)) / largest
    whole = np.rint(rows / scale[:, None]).astype(np.int8).view(np.uint8)
    single = np.unpackbits(whole.reshape(-1, 1), axis=1)[:, -bits:]
    packed |= {"bits": bits} if bits < 8 else {}
    return packed | {"whole": base64_of(np.packbits(single)), "scales": base64_of(scale)}


def bits_of(name: str, agent: DreamerAgent) -> int:
    """8, but fewer for agents of pixels, whose files would be 1.7 MB: 6 for the one matrix that is
    a third of all, 7 for others. Kernels, where rounding is seen most, have 8."""
    if not agent.layout.images or agent.state_dict()[name].ndim != 2:
        return 8
    return 6 if name == "decoder.images.0.0.weight" else 7


def outputs_first(name: str, tensor: Tensor) -> Tensor:
    """A transposed convolution has its inputs before its outputs."""
    return tensor.transpose(0, 1) if "decoder" in name and tensor.ndim == 4 else tensor


def pack(agent: DreamerAgent, rounded: bool = True) -> dict[str, Any]:
    """All that the page needs of an agent, as plain data."""
    layout, config = agent.layout, agent.config
    sizes = {"deter": config.deter, "categoricals": config.categoricals, "classes": config.classes}
    sizes |= {"action": layout.action_size, "discrete": layout.discrete}
    sizes |= {"mix": config.unimix, "limit": agent.encoder.norm.limit}
    tensors = {
        name: pack_tensor(outputs_first(name, tensor), bits_of(name, agent) if rounded else None)
        for name, tensor in agent.state_dict().items()
        if name.split(".")[0] in PARTS and (".norm." not in name or name in NORM)
    }
    about = {"repeat": config.action_repeat, "horizon": config.imag_horizon}
    return {**about, "sizes": sizes, "tensors": tensors}


def record(agent: DreamerAgent, env_id: str, number: int) -> list[dict[str, Any]]:
    """Real episodes of the greedy agent."""
    episodes = []
    with AgentEnv(env_id, agent.config.action_repeat) as env:
        for i in range(number):
            seed = derive_seed(0, RECORDING, i)
            rows = play(env, greedy_policy(agent, seed), seed)
            obs, reward = (rows[k].astype(float).round(4).tolist() for k in ("obs", "reward"))
            action, ended = rows["action"].argmax(1).tolist(), bool(rows["cont"][-1] == 0)
            episodes.append({"obs": obs, "action": action, "reward": reward, "terminated": ended})
    return episodes


def mean_return(name: str) -> float:
    """The task's mean in docs/results.md, which a visitor may beat."""
    runs = results.load(results.RESULTS / f"{name}.json")["runs"]
    return round(float(np.mean([run["final_returns"] for run in runs])), 1)


def script(name: str, packed: dict[str, Any]) -> str:
    """The file of an agent: a call, with a line for each tensor and each episode."""
    text = json.dumps(packed, separators=(",", ":"), allow_nan=False)
    text = re.sub(r'("[\w.]+":\{"shape"|\{"obs":)', r"\n\1", text)
    return f'dreamAgent("{name}",{text});\n'


def read_script(path: Path) -> dict[str, Any]:
    """What such a file holds; nothing where there is none."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def with_links(page: str) -> str:
    """The page with each link to code (data-code="path:Class.name") on the line where that is."""

    def link(found: re.Match) -> str:
        path, _, name = found[1].partition(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        line = inspect.getsourcelines(operator.attrgetter(name)(module))[1]
        return f'data-code="{found[1]}" href="{SOURCE}/{path}#L{line}"'

    return re.sub(r'data-code="([^"]+)"\s+href="[^"]*"', link, page)


def files(agents: Path, committed: Path) -> dict[Path, str]:
    """All that the command writes: path below the page's folder -> content. Recordings in the
    `committed` page stay where they are of the same weights."""
    made = {Path("index.html"): with_links((PAGE / "index.html").read_text(encoding="utf-8"))}
    for name, (env_id, number) in TASKS.items():
        agent, path = load_agent(agents / f"{name}.pt", "cpu"), Path("agents") / f"{name}.js"
        packed, old = pack(agent), read_script(committed / path)
        if number:
            before = old.pop("episodes", [])
            same = old.get("tensors") == packed["tensors"] and len(before) == number
            packed["episodes"] = before if same else record(agent, env_id, number)
        made[path] = script(name, {"score": mean_return(name), **packed})
    return made


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


def take_picture(browser: Any, page: Path, target: Path) -> None:
    """A screenshot of the page in `page`: Pendulum, asleep, with ghosts."""
    tab = browser.new_page(viewport={"width": 1120, "height": 1400})
    tab.goto((page / "index.html").resolve().as_uri() + "#pendulum")
    tab.wait_for_function("session !== null")
    tab.evaluate(PENDULUM)
    tab.wait_for_timeout(1000)  # colours glide
    top, latent = (tab.locator(name).bounding_box() for name in (".stage", ".latent"))
    height = latent["y"] + latent["height"] - top["y"]
    clip = {"x": 24, "y": top["y"] - 12, "width": 1072, "height": height + 24}
    picture = Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB")
    tab.close()
    save_png(picture, target, Image.Quantize.MAXCOVERAGE)  # no colour is lost, were it ever so rare


def main(
    agents: Path = ASSETS / "agents",
    out: Path = PAGE,
    check: bool = False,
    picture: Path | None = None,
) -> None:
    """Write the page, compare it, or take its picture.

    Args:
        agents: folder of *.pt
        out: folder of the page
        check: only compare
        picture: only take a picture of the page, to here
    """
    if picture:
        from playwright.sync_api import sync_playwright  # of requirements-dev.txt

        with sync_playwright() as playwright:
            found = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            return take_picture(browser, out, picture)
    for path, text in files(agents, out).items():
        target = out / path
        same = target.exists() and target.read_text(encoding="utf-8") == text
        if check and not same:
            sys.exit(f"{short(target)} is not what `python -m lab.dream_page` writes: run it.")
        if not check:
            write_atomic(target, lambda part, text=text: part.write_text(text, encoding="utf-8"))
        print(f"{short(target)}: {len(text) / 1e6:.2f} MB, {'unchanged' if same else 'changed'}")


if __name__ == "__main__":
    parse(main, __doc__, prog="python -m lab.dream_page")
