# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of DreamerV3, by running it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/DrunkJin/dreamer-from-scratch/blob/main/docs/tour.ipynb)
#
# Six small things, in the order in which the algorithm needs them: squashed numbers, a distribution
# over bins, a latent of categoricals, a λ-return by hand, an agent that learns CartPole in its
# dreams, and such a dream beside reality. It needs no GPU and takes about five minutes.
#
# Run all cells in Colab, or in a clone. (It is written as a script, `docs/tour.py`; `CONTRIBUTING.md`
# says how the notebook is made of it.)

# %%
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    source = "https://github.com/DrunkJin/dreamer-from-scratch.git"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", source], check=True)
    os.chdir("dreamer-from-scratch")
    # Colab's own PyTorch is good enough.
    needed = ["gymnasium[classic-control]", "tqdm"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)
while not Path("dreamer").is_dir() and Path.cwd() != Path.cwd().parent:  # up to the clone
    os.chdir("..")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # drawings, but no window
sys.path.insert(0, os.getcwd())

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import IFrame, Image

from dreamer import AgentEnv, Config, DreamerAgent, evaluate, train
from dreamer.evaluation import greedy_policy, open_loop, play
from dreamer.utils import (
    lambda_return,
    symexp,
    symlog,
    twohot_bins,
    twohot_encode,
    twohot_mean,
    unimix,
)
from lab.animations import render_observations, write_gif

DREAM = "#0072B2"  # blue is what is dreamed, black what is real
plt.rcParams |= {"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False}

# %% [markdown]
# ## 1. symlog: one network for numbers of any size
#
# What is observed may be 0.01 or 1,000. `symlog(x) = sign(x) ln(1 + |x|)` leaves small numbers nearly as they
# are and squashes large ones, of both signs; `symexp` undoes it.

# %%
x = torch.linspace(-50, 50, 1001)
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(x, symlog(x), color=DREAM, label="symlog(x)")
ax.plot(x, x, ":", color="black", label="x")
ax.set(xlabel="x", ylim=(-6, 6), title="symlog: small numbers stay, large ones are squashed")
ax.legend()
print("symexp(symlog(1000)) =", symexp(symlog(torch.tensor(1000.0))).item())

# %% [markdown]
# ## 2. Two-hot: a number as a distribution
#
# Reward and value are not predicted as a number but as a distribution over 255 bins, which lie close
# together near 0. The target puts its weight on the two bins around the number, so that their mean
# is the number itself.

# %%
bins = twohot_bins()
number = torch.tensor(3.3)
target = twohot_encode(number, bins)
fig, ax = plt.subplots(figsize=(6, 2.2))
near = slice(120, 145)
ax.stem(bins[near], target[near], linefmt=DREAM, basefmt=" ")
ax.axvline(number, color="black", ls=":")
ax.set(xlabel="bin (raw units)", ylabel="weight", title="The number 3.3 as weights of two bins")
print("sum of weight x bin =", (target @ bins).item())
print("a fresh head, all logits 0, says", twohot_mean(torch.zeros(255), bins).item())

# %% [markdown]
# ## 3. One latent: 16 choices of one in 16
#
# What the model thinks of a moment is 16 categorical variables. Before it looks it has a guess, the
# *prior*; after looking, the *posterior*. Of both, 1% is spread evenly (`unimix`), so that nothing is
# ever impossible. Here is a latent of random logits: rows are variables, columns classes, dots what
# was drawn. A trained one follows in part 6.

# %%
probs = unimix(3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).exp()
drawn = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(1))[:, 0]


def show_latent(ax, probs, drawn, title):
    ax.imshow(probs, cmap="Blues", vmin=0, vmax=1)
    ax.plot(drawn, range(16), "o", color="black", ms=3)
    ax.set(title=title, xticks=[], yticks=[], xlabel="class (16)", ylabel="variable (16)")


fig, ax = plt.subplots(figsize=(3, 3))
show_latent(ax, probs, drawn, "One latent: probabilities and a draw")
print("smallest probability:", round(probs.min().item(), 5), "= 1% / 16")

# %% [markdown]
# ## 4. A λ-return by hand
#
# How good was what happened after a state? The reward, plus what the critic makes of the next state,
# mixed with the same for the state after that, and so on:
#
# $$R_t = r_{t+1} + \gamma c_{t+1} \big((1 - \lambda) v_{t+1} + \lambda R_{t+1}\big), \qquad R_H = v_H$$
#
# Three steps, computed from the end backwards, with an episode's end (c = 0) after the second.

# %%
gamma, lam = 0.9, 0.8
reward, cont, value = [1.0, 2.0, 4.0], [1.0, 0.0, 1.0], [5.0, 6.0, 7.0, 8.0]

R3 = value[3]
R2 = reward[2] + gamma * cont[2] * ((1 - lam) * value[3] + lam * R3)  # 4 + 0.9 * 8
R1 = reward[1] + gamma * cont[1] * ((1 - lam) * value[2] + lam * R2)  # the end: 2 and nothing more
R0 = reward[0] + gamma * cont[0] * ((1 - lam) * value[1] + lam * R1)  # 1 + 0.9 * (1.2 + 1.6)
print("by hand:      ", [round(R, 3) for R in (R0, R1, R2)])

rows = (torch.tensor([numbers]) for numbers in (reward, value, cont))
print("lambda_return:", [round(R, 3) for R in lambda_return(*rows, gamma, lam)[0].tolist()])

# %% [markdown]
# ## 5. CartPole, learned in dreams
#
# A few thousand steps of the real CartPole. The first 1,000 are random. From then on, three times in
# every eight steps, the agent learns its world model from what it has seen, dreams 15 steps ahead of 64
# remembered moments, and learns from these dreams how to act.

# %%
STEPS = int(os.environ.get("TOUR_STEPS", 6_000))  # the tests take fewer
config = Config(steps=STEPS, train_ratio=96, action_repeat=2, evals=10, eval_episodes=20)
run = train("CartPole-v1", config)
agent: DreamerAgent = run.agent

fig, ax = plt.subplots(figsize=(6, 2.4))
ax.plot([e["step"] for e in run.evals], [e["return"] for e in run.evals], "o-", color=DREAM)
ax.axhline(475, color="black", ls=":")
ax.set(xlabel="environment steps", ylabel="return", title="Greedy return (dotted: solved)")
episodes = 20 if STEPS >= 6_000 else 2
print(f"{evaluate(agent, episodes=episodes, seed=1).mean():.1f} on {episodes} fresh episodes")

# %% [markdown]
# ## 6. Its dream beside reality
#
# The agent watches an episode for five steps. Then its eyes are shut: it is told which actions are
# taken, and has to imagine what comes of them. Eight dreams, each with other draws of the latent.

# %%
env = AgentEnv("CartPole-v1", config.action_repeat)
episode = play(env, greedy_policy(agent, seed=7), seed=7)
shown = min(45, len(episode["obs"]))
context = min(5, shown - 1)
window = (np.repeat(episode[name][None, :shown], 8, 0) for name in ("obs", "action"))
found = open_loop(agent, *window, context, seed=0)
dreams = found["obs"]  # (8, shown - context, 4)
over = np.cumsum(found["cont"] < 0.5, 1) > 0  # it holds the episode for over

fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
titles = {0: "Position of the cart", 2: "Angle of the pole (rad)"}
for ax, (i, title) in zip(axes, titles.items(), strict=True):
    ax.plot(range(context, shown), dreams[:, :, i].T, color=DREAM, alpha=0.15)
    alive = np.where(over, np.nan, dreams[:, :, i])
    ax.plot(range(context, shown), alive.T, color=DREAM, alpha=0.5)
    ax.plot(episode["obs"][:shown, i], color="black")
    ax.axvspan(0, context - 1, color="grey", alpha=0.25, lw=0)
    ax.axvline(context + config.imag_horizon, color="grey", ls=":")
    ax.set(title=title, xlabel="step (grey: it looks; dotted: 15 dreamed steps)")
for limit in (-np.radians(12), np.radians(12)):
    axes[1].axhline(limit, color="grey", ls="--", lw=0.8)

# %% [markdown]
# Each blue line is one sample, not an average. Its latents are drawn anew at every step, small
# errors grow, and the dreams part. Where a dreamed pole falls, its angle levels off a little beyond
# 12° (dashed). There an episode ends, so the model has never seen a pole lean further. It says so
# itself: where a line is pale, the continue head holds the episode for over.
#
# One of these dreams as a film: reality at the left, the dream at the right.

# %%
real = episode["obs"][:shown]
dreamed = np.concatenate([real[:context], dreams[0]])
film = [np.stack(render_observations("CartPole-v1", rows, seed=0)) for rows in (real, dreamed)]
film = np.concatenate([frames[:, :, 150:450] for frames in film], 2)  # the middle of the track
film[:, :, 300] = 128  # a line between them
captions = [f"it looks, step {t + 1}" for t in range(context)]
for t, end in enumerate(over[0]):
    captions.append(f"it dreams, step {t + 1}" + ("; the episode is over, it says" if end else ""))
title = "Left: reality. Right: the dream, with the same actions."
write_gif(film, captions, title, "runs/tour.gif", milliseconds=120)
Image("runs/tour.gif", format="png")  # GitHub shows GIFs under this name only

# %% [markdown]
# The latent of the last moment that it saw: what it expected, and what it believed after looking. The
# dots, in both, are what was drawn then.

# %%
with torch.inference_mode():
    obs, action = (torch.from_numpy(episode[name][None, :context]) for name in ("obs", "action"))
    first = torch.arange(context)[None] == 0
    obs, action, first = (t.to(agent.device) for t in (obs, action, first))
    rng = torch.Generator(agent.device).manual_seed(0)
    post, _ = agent.rssm.observe(agent.encoder(obs), action, first, rng)
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))
titles = {"prior": "Prior: what it expects", "post": "Posterior: after looking"}
for ax, (name, title) in zip(axes, titles.items(), strict=True):
    logits = getattr(post, f"{name}_logits")[0, -1].cpu()
    show_latent(ax, logits.exp(), post.stoch[0, -1].argmax(-1).cpu(), title)

# %% [markdown]
# ## 7. Step in
#
# The same with your own hands: four trained agents, reality at the left, the dream at the right. Click
# into it; the arrows steer, Z puts it to sleep and wakes it up. (No internet? Open
# `docs/dream/index.html`.)

# %%
IFrame("https://drunkjin.github.io/dreamer-from-scratch/", width="100%", height=900)
