"use strict";
/* The trained agent's forward pass, a second time: world model, heads, actor and critic.

It is dreamer/rssm.py and dreamer/networks.py without learning, and names things as they do: deter h
(D,) is the memory of the GRU, stoch z (S * K,) the sampled latent, S one-hot vectors of K classes,
post and prior the probabilities of its classes. What is sampled is sampled with given random numbers,
so that the tests can compare every number with PyTorch's (tests/test_dream_model.py). Vectors are
typed arrays; matrices are stored row by row. What takes a list (xs, states, deters) gives one. */

// ------------------------------------------------------------ pure maths (dreamer/utils.py)

const symlog = (x) => Math.sign(x) * Math.log1p(Math.abs(x));
const symexp = (x) => Math.sign(x) * Math.expm1(Math.abs(x));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** Bin positions symexp(linspace(0, 20)); those below 0 are their mirror image. */
function upperBins(count) {
  const half = (count - 1) / 2;
  return Float32Array.from({ length: half + 1 }, (_, i) => symexp((20 * i) / half));
}

/** Softmax of each run of `size` numbers, with a share `mix` of the uniform distribution. */
function probabilities(logits, size, mix) {
  const probs = new Float32Array(logits.length);
  for (let start = 0; start < logits.length; start += size) {
    let largest = -Infinity;
    for (let k = start; k < start + size; k++) largest = Math.max(largest, logits[k]);
    let total = 0;
    for (let k = start; k < start + size; k++) total += probs[k] = Math.exp(logits[k] - largest);
    for (let k = start; k < start + size; k++) {
      probs[k] = ((1 - mix) * probs[k]) / total + mix / size;
    }
  }
  return probs;
}

/** One one-hot vector for each run of `size` probabilities, drawn by inverting the cumulative
 * distribution at the given random numbers in [0, 1). */
function sampleOnehot(probs, size, uniform) {
  const onehot = new Float32Array(probs.length);
  for (let i = 0; i * size < probs.length; i++) {
    let total = 0;
    for (let k = 0; k < size; k++) total += probs[i * size + k];
    let index = 0;
    let below = probs[i * size]; // the probability of classes 0..index
    while (index < size - 1 && below <= uniform[i] * total) below += probs[i * size + ++index];
    onehot[i * size + index] = 1;
  }
  return onehot;
}

/** KL[q || p] in nats, summed over all categoricals. */
function klNats(q, p) {
  let sum = 0;
  for (let k = 0; k < q.length; k++) sum += q[k] * Math.log(q[k] / p[k]);
  return sum;
}

/** Expected value of a distribution over the bins, in mirrored pairs: (p_i - p_-i) bin_i. */
function twohotMean(logits, bins) {
  const probs = probabilities(logits, logits.length, 0);
  const middle = bins.length - 1;
  let sum = 0;
  for (let i = 1; i <= middle; i++) sum += (probs[middle + i] - probs[middle - i]) * bins[i];
  return sum;
}

function concat(...parts) {
  const all = new Float32Array(parts.reduce((size, part) => size + part.length, 0));
  let start = 0;
  for (const part of parts) {
    all.set(part, start);
    start += part.length;
  }
  return all;
}

// ------------------------------------------------------------ weights

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** The whole numbers of `bits` bits each that are packed in a base64 text: 6 bits are a letter. */
function wholesOf(text, bits) {
  const place = new Uint8Array(128);
  for (let i = 0; i < 64; i++) place[LETTERS.charCodeAt(i)] = i;
  const letters = text.length - text.match(/=*$/)[0].length;
  const wholes = new Int8Array(Math.floor((letters * 6) / bits));
  for (let i = 0, out = 0, buffer = 0, known = 0; out < wholes.length; ) {
    for (; known < bits; known += 6) buffer = (buffer << 6) | place[text.charCodeAt(i++)];
    known -= bits;
    wholes[out++] = ((buffer >> known) << (32 - bits)) >> (32 - bits); // its first bit is the sign
  }
  return wholes;
}

const floatsOf = (text) => new Float32Array(wholesOf(text, 8).buffer);

/** A tensor as lab/dream_page.py packs it: float32 numbers, or whole numbers of 8 bits or fewer, which
 * take a quarter of the memory and so less time to read, with one scale for each row. */
function unpack({ shape, floats, whole, scales, bits = 8 }) {
  if (floats !== undefined) return { shape, data: floatsOf(floats), scale: null };
  return { shape, data: wholesOf(whole, bits), scale: floatsOf(scales) };
}

// ------------------------------------------------------------ layers (dreamer/networks.py)

/** The places where x is not 0. */
function places(x) {
  const found = [];
  for (let i = 0; i < x.length; i++) if (x[i] !== 0) found.push(i);
  return found;
}

/** weight @ x + bias for each x of a list; weight (rows, columns). Nearly all of the time is spent in
 * here. So the matrix is read once for the whole list, four rows at a time, and without the columns
 * where x is 0, as most of a latent is. */
function linear({ weight, bias }, xs) {
  const [rows, columns] = weight.shape;
  const { data, scale } = weight;
  const outs = xs.map(() => new Float32Array(rows));
  const used = xs.map(places);
  const last = (rows - 1) * columns; // where the last row starts; it is read again after the end
  for (let row = 0, i = 0; row < rows; row += 4, i += 4 * columns) {
    const j = Math.min(i + columns, last);
    const k = Math.min(j + columns, last);
    const l = Math.min(k + columns, last);
    for (let n = 0; n < xs.length; n++) {
      const [x, on, out] = [xs[n], used[n], outs[n]];
      let [a, b, c, d] = [0, 0, 0, 0];
      for (let m = 0; m < on.length; m++) {
        const column = on[m];
        const value = x[column];
        a += data[i + column] * value;
        b += data[j + column] * value;
        c += data[k + column] * value;
        d += data[l + column] * value;
      }
      out[row] = a;
      out[row + 1] = b; // beyond the end of a typed array, nothing is written
      out[row + 2] = c;
      out[row + 3] = d;
    }
  }
  for (const out of outs) {
    for (let row = 0; row < rows; row++) {
      if (scale) out[row] *= scale[row];
      if (bias) out[row] += bias.data[row];
    }
  }
  return outs;
}

/** Layer normalisation, then SiLU; in place. An image (H, W, C) has a weight for each channel. */
function normSilu(norm, x) {
  const size = norm.weight.data.length;
  let mean = 0;
  for (const value of x) mean += value / x.length;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-4);
  for (let i = 0; i < x.length; i++) {
    const y = (x[i] - mean) * scale * norm.weight.data[i % size] + norm.bias.data[i % size];
    x[i] = y * sigmoid(y);
  }
  return x;
}

/** Blocks of Linear -> Norm -> SiLU, then a plain Linear where there is one. */
class MLP {
  constructor(tensors, name) {
    const layer = (i) => ({
      weight: tensors[`${name}.${i}.weight`],
      bias: tensors[`${name}.${i}.bias`],
    });
    this.blocks = [];
    let i = 0;
    for (; layer(i + 1).weight; i += 3) this.blocks.push({ ...layer(i), norm: layer(i + 1) });
    this.out = layer(i).weight ? layer(i) : null;
  }

  run(xs) {
    for (const block of this.blocks) xs = linear(block, xs).map((x) => normSilu(block.norm, x));
    return this.out ? linear(this.out, xs) : xs;
  }
}

// ------------------------------------------------------------ the agent (dreamer/rssm.py)

class Model {
  /** packed: what lab/dream_page.py writes of an agent. */
  constructor(packed) {
    const tensors = {};
    for (const name in packed.tensors) tensors[name] = unpack(packed.tensors[name]);
    const mlp = (name) => new MLP(tensors, name);
    const layer = (name) => ({ weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`] });
    Object.assign(this, packed.sizes); // deter, categoricals, classes, action, discrete, mix, limit
    this.mean = tensors["encoder.norm.mean"].data;
    this.std = tensors["encoder.norm.std"].data;
    this.pixels = "encoder.images.0.0.weight" in tensors; // all that it sees
    const image = (kind, name) => new kind(tensors, `${name}.images.0`);
    this.encoder = this.pixels ? image(ImageEncoder, "encoder") : mlp("encoder.mlp");
    this.inDeter = mlp("rssm.in_deter");
    this.inStoch = mlp("rssm.in_stoch");
    this.inAction = mlp("rssm.in_action");
    this.gru = layer("rssm.gru");
    this.postDeter = layer("rssm.post_deter");
    this.postEmbed = layer("rssm.post_embed");
    this.postNorm = layer("rssm.post_norm");
    this.postOut = layer("rssm.post_out");
    this.priorMlp = mlp("rssm.prior_mlp");
    this.decoder = this.pixels ? image(ImageDecoder, "decoder") : mlp("decoder.mlp");
    this.rewardHead = mlp("reward.mlp");
    this.contHead = mlp("cont.mlp");
    this.actor = mlp("actor.mlp");
    this.critic = mlp("critic.mlp");
    this.bins = upperBins(this.critic.out.weight.shape[0]);
  }

  // ---------------------------------------------------------- one step

  /** The state before an episode: all zero. */
  initial() {
    return {
      deter: new Float32Array(this.deter),
      stoch: new Float32Array(this.categoricals * this.classes),
    };
  }

  /** The observation as encoder and decoder see it: symlog, normalised, within the limit. Pixels stay
   * what they are, from 0 to 255. */
  normalise(obs) {
    if (this.pixels) return obs;
    return Float32Array.from(obs).map((x, i) => {
      const y = (symlog(x) - this.mean[i]) / this.std[i];
      return Math.max(-this.limit, Math.min(this.limit, y));
    });
  }

  /** h_t = GRU(h_{t-1}, z_{t-1}, a_{t-1}), with the same action for all states. */
  sequenceStep(states, action) {
    const within = Float32Array.from(action).map((a) => a / Math.max(1, Math.abs(a)));
    const [inAction] = this.inAction.run([within]);
    const inDeter = this.inDeter.run(states.map(({ deter }) => deter));
    const inStoch = this.inStoch.run(states.map(({ stoch }) => stoch));
    const all = linear(this.gru, states.map((_, n) => concat(inDeter[n], inStoch[n], inAction)));
    const size = this.deter;
    return all.map((gates, n) =>
      states[n].deter.map((h, i) => {
        const cand = Math.tanh(sigmoid(gates[i]) * gates[size + i]);
        const update = sigmoid(gates[2 * size + i] - 1);
        return h + update * (cand - h);
      }),
    );
  }

  /** p(z | h): what the model expects, without looking. */
  prior(deters) {
    return this.priorMlp.run(deters).map((out) => probabilities(out, this.classes, this.mix));
  }

  /** q(z | h, x): what it believes after looking. */
  posterior(deter, obs) {
    const embed = this.encoder.run([this.normalise(obs)]);
    const [hidden] = linear(this.postDeter, [deter]);
    linear(this.postEmbed, embed)[0].forEach((value, i) => (hidden[i] += value));
    const [out] = linear(this.postOut, [normSilu(this.postNorm, hidden)]);
    return probabilities(out, this.classes, this.mix);
  }

  /** Awake: look at obs with the memory h. The state takes its latent from the posterior. */
  look(deter, obs, uniform) {
    const post = this.posterior(deter, obs);
    const stoch = sampleOnehot(post, this.classes, uniform);
    return { deter, stoch, post, prior: this.prior([deter])[0] };
  }

  /** One filtering step: time passes, then it looks. */
  observe(state, action, obs, uniform) {
    return this.look(this.sequenceStep([state], action)[0], obs, uniform);
  }

  /** One dreamed step of each state: time passes, and the latent is taken from the prior. */
  imagine(states, action, uniforms) {
    const deters = this.sequenceStep(states, action);
    return this.prior(deters).map((prior, n) => {
      const stoch = sampleOnehot(prior, this.classes, uniforms[n]);
      return { deter: deters[n], stoch, post: null, prior };
    });
  }

  // ---------------------------------------------------------- what it says of a state

  /** The decoded observations, as the decoder gives them and in the environment's own units. */
  decode(states) {
    const guesses = this.decoder.run(states.map(({ deter, stoch }) => concat(deter, stoch)));
    const own = this.pixels
      ? (x) => 255 * Math.max(0, Math.min(1, x))
      : (x, i) => symexp(x * this.std[i] + this.mean[i]);
    return guesses.map((guess) => ({ guess, obs: guess.map(own) }));
  }

  /** Predicted reward, P(continue) and value. */
  heads({ deter, stoch }) {
    const feat = [concat(deter, stoch)];
    return {
      reward: twohotMean(this.rewardHead.run(feat)[0], this.bins),
      cont: sigmoid(this.contHead.run(feat)[0][0]),
      value: twohotMean(this.critic.run(feat)[0], this.bins),
    };
  }

  /** π(a | s): probabilities of the actions, or mean and standard deviation of a normal. */
  policy({ deter, stoch }) {
    const [out] = this.actor.run([concat(deter, stoch)]);
    if (this.discrete) return { probs: probabilities(out, out.length, this.mix) };
    const size = this.action;
    return {
      mean: out.slice(0, size).map(Math.tanh),
      std: out.slice(size).map((x) => 0.1 + 0.9 * sigmoid(x + 2)),
    };
  }

  /** An action of the policy: its mode, or a draw. noise: one number in [0, 1) for probabilities, a
   * standard normal one for each entry of a continuous action. */
  act(policy, greedy, noise) {
    if (!this.discrete) {
      return policy.mean.map((m, i) => (greedy ? m : m + policy.std[i] * noise[i]));
    }
    if (!greedy) return sampleOnehot(policy.probs, this.action, noise);
    const onehot = new Float32Array(this.action);
    onehot[policy.probs.indexOf(Math.max(...policy.probs))] = 1;
    return onehot;
  }
}
