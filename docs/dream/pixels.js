"use strict";
/* Reality as pictures: Pendulum and CartPole as Gymnasium draws them, cut out and made small as in
lab/pixels.py. What is drawn is a typed array of bytes, so that the tests can compare it with
Gymnasium's (tests/lab/test_dream_pixels.py). Corners and centres are whole pixels, as they are there. */

const SIDE = 64; // of a picture, which has three colours: SIDE x SIDE x 3

/** A white drawing. paint: its y grows upwards, as in the worlds. */
class Drawing {
  constructor(width, height) {
    Object.assign(this, { width, height, data: new Uint8ClampedArray(3 * width * height).fill(255) });
  }

  /** Colour each pixel of a box (its sides included) by the share that cover(x, y) gives. */
  paint([left, bottom, right, top], [red, green, blue], cover) {
    const { width, height, data } = this;
    [left, bottom] = [Math.max(left, 0), Math.max(bottom, 0)];
    [right, top] = [Math.min(right, width - 1), Math.min(top, height - 1)];
    for (let y = bottom; y <= top; y++) {
      let i = 3 * ((height - 1 - y) * width + left);
      for (let x = left; x <= right; x++, i += 3) {
        const share = cover(x, y);
        if (share <= 0) continue;
        data[i] += share * (red - data[i]);
        data[i + 1] += share * (green - data[i + 1]);
        data[i + 2] += share * (blue - data[i + 2]);
      }
    }
  }

  disc(x, y, radius, color) {
    const cover = (u, v) => Math.min(1, radius + 1 - Math.hypot(u - x, v - y));
    this.paint([x - radius, y - radius, x + radius, y + radius], color, cover);
  }

  /** A box of that many pixels to the left, below, to the right and above of (x, y), turned about it. */
  box([left, below, right, above], angle, x, y, color) {
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    const corners = [[left, below], [left, above], [right, above], [right, below]].map(([u, v]) => [
      Math.trunc(cos * u - sin * v + x), Math.trunc(sin * u + cos * v + y),
    ]);
    const sides = corners.map(([u, v], i) => {
      const [du, dv] = [corners[(i + 1) % 4][0] - u, corners[(i + 1) % 4][1] - v];
      const length = Math.hypot(du, dv);
      return [-dv / length, du / length, (dv * u - du * v) / length]; // distance outside of it
    });
    const [xs, ys] = [0, 1].map((k) => corners.map((corner) => corner[k]));
    const around = [Math.min(...xs) - 1, Math.min(...ys) - 1, Math.max(...xs) + 1, Math.max(...ys) + 1];
    const [a, b, c, d] = sides;
    const beyond = ([p, q, r], u, v) => p * u + q * v + r;
    this.paint(around, color, (u, v) =>
      1 - Math.max(0, beyond(a, u, v), beyond(b, u, v), beyond(c, u, v), beyond(d, u, v)));
  }

  /** The picture that an agent sees. */
  small() {
    const { width, height, data } = this;
    const flat = shrink(data, 1, height, 3 * width, SIDE);
    return shrink(flat, SIDE, width, 3, SIDE).map(Math.round);
  }
}

/** Averages over areas: `size` of the numbers (outer, size, inner) become `wanted`. */
function shrink(data, outer, size, inner, wanted) {
  const out = new Float32Array(outer * wanted * inner);
  for (let i = 0; i < wanted; i++) {
    const [from, to] = [(i * size) / wanted, ((i + 1) * size) / wanted];
    for (let k = Math.floor(from); k < to; k++) {
      const share = ((Math.min(k + 1, to) - Math.max(k, from)) * wanted) / size;
      for (let o = 0; o < outer; o++) {
        const [source, target] = [(o * size + k) * inner, (o * wanted + i) * inner];
        for (let j = 0; j < inner; j++) out[target + j] += share * data[source + j];
      }
    }
  }
  return out;
}

/** Gymnasium's picture of a torque, an arrow around three quarters of a circle, before it is scaled:
 * its opacity, from the top row on. */
const ARROW = { width: 329, height: 312 };

function arrow() {
  const { width, height } = ARROW;
  return (ARROW.data ??= Float32Array.from({ length: width * height }, (_, i) => {
    const [x, y] = [(i % width) + 0.5, Math.floor(i / width) + 0.5];
    const radius = Math.hypot(x - 173, y - 156);
    const arc = radius < 156 && radius > 146 && (x > 170 || y > 156);
    const away = Math.abs(x - 22); // from the middle of its head
    const head = y > 110.5 + 2.7 * away && y < 153.5 + 0.75 * away;
    return Number(arc || head);
  }));
}

/** PixelPendulum's picture; torque: the last one, null at the start of an episode. */
function drawPendulum([angle], torque) {
  const drawing = new Drawing(280, 280);
  const [middle, scale, red] = [140, 500 / 4.4, [204, 77, 77]];
  const turned = angle + Math.PI / 2;
  drawing.box([0, -0.1 * scale, scale, 0.1 * scale], turned, middle, middle, red);
  drawing.disc(middle, middle, 11, red);
  const tip = [Math.cos(turned), Math.sin(turned)].map((x) => Math.trunc(x * scale + middle));
  drawing.disc(...tip, 11, red);
  const size = Math.trunc((scale * Math.abs(torque ?? 0)) / 2);
  if (size) {
    const opacity = shrink(shrink(arrow(), 1, ARROW.height, ARROW.width, size), size, ARROW.width, 1, size);
    const left = middle - Math.floor(size / 2);
    drawing.paint([left, left, left + size - 1, left + size - 1], [0, 0, 0], (x, y) => {
      const [column, row] = [torque > 0 ? left + size - 1 - x : x - left, left + size - 1 - y];
      return opacity[row * size + column];
    });
  }
  drawing.disc(middle, middle, 5, [0, 0, 0]);
  return drawing.small();
}

/** PixelCartPole's picture. Heights are from the lowest row that is kept. */
function drawCartPole([place, , angle]) {
  const drawing = new Drawing(600, 160);
  const [x, track] = [(place * 600) / 4.8 + 300, 20];
  drawing.box([-25, -15, 25, 15], 0, x, track, [0, 0, 0]);
  drawing.box([-5, -5, 5, 120], -angle, x, track + 7.5, [202, 152, 101]);
  drawing.disc(Math.trunc(x), track + 7, 5, [129, 132, 203]);
  drawing.paint([0, track, 599, track], [0, 0, 0], () => 1);
  return drawing.small();
}

/** A world (Held) that is seen as draw(state, torque) shows it. */
class Pictured {
  constructor(world, draw) {
    Object.assign(this, { world, draw, repeat: world.repeat });
  }

  reset(random) {
    this.world.reset(random);
    return this.draw(this.world.world.state, null);
  }

  step(action) {
    const result = this.world.step(action);
    return { ...result, obs: this.draw(this.world.world.state, 2 * clip(action[0], -1, 1)) };
  }
}
