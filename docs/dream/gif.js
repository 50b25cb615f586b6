"use strict";
/* The last seconds of both pictures, as a GIF. The format: GIF89a, with one palette for all frames. */

const FRAMES = 90; // that are kept

/** Frames of RGBA bytes, width x height each, as the bytes of a GIF; delay: milliseconds of each. */
function encodeGif(frames, width, height, delay) {
  const { palette, indexOf } = paletteOf(frames);
  const word = (number) => [number & 255, number >> 8];
  const bytes = [..."GIF89a"].map((letter) => letter.charCodeAt(0));
  bytes.push(...word(width), ...word(height), 0xf7, 0, 0, ...palette); // 256 colours
  bytes.push(0x21, 0xff, 11, ...[..."NETSCAPE2.0"].map((letter) => letter.charCodeAt(0)));
  bytes.push(3, 1, 0, 0, 0); // again and again
  for (const frame of frames) {
    bytes.push(0x21, 0xf9, 4, 0, ...word(Math.round(delay / 10)), 0, 0);
    bytes.push(0x2c, 0, 0, 0, 0, ...word(width), ...word(height), 0, 8);
    const packed = lzw(colours15(frame).map(indexOf));
    for (let i = 0; i < packed.length; i += 255) {
      const block = packed.slice(i, i + 255);
      bytes.push(block.length, ...block);
    }
    bytes.push(0);
  }
  bytes.push(0x3b);
  return Uint8Array.from(bytes);
}

/** Each pixel's colour as a number of 15 bits. */
function colours15(frame) {
  const found = new Uint16Array(frame.length / 4);
  for (let i = 0; i < found.length; i++) {
    const [red, green, blue] = [frame[4 * i], frame[4 * i + 1], frame[4 * i + 2]];
    found[i] = ((red >> 3) << 10) | ((green >> 3) << 5) | (blue >> 3);
  }
  return found;
}

/** The 256 colours that occur most; `indexOf` gives the nearest of them. */
function paletteOf(frames) {
  const counts = new Uint32Array(1 << 15);
  for (const frame of frames) for (const colour of colours15(frame)) counts[colour]++;
  const order = [...counts.keys()].filter((c) => counts[c]).sort((a, b) => counts[b] - counts[a]);
  const rgb = (c) => [c >> 10, (c >> 5) & 31, c & 31].map((x) => Math.round((x * 255) / 31));
  const chosen = order.slice(0, 256).map(rgb);
  const nearest = new Int16Array(1 << 15).fill(-1);
  const indexOf = (colour) => {
    if (nearest[colour] < 0) {
      const far = chosen.map((c) => c.reduce((sum, x, i) => sum + (x - rgb(colour)[i]) ** 2, 0));
      nearest[colour] = far.indexOf(Math.min(...far));
    }
    return nearest[colour];
  };
  const palette = Array.from({ length: 256 }, (_, i) => chosen[i] ?? [0, 0, 0]).flat();
  return { palette, indexOf };
}

/** Indices of 8 bits, packed as GIF wants it: Lempel, Ziv and Welch, codes of 9 to 12 bits. */
function lzw(indices) {
  const [clear, end] = [256, 257];
  const out = [];
  let [buffer, bits, size, next] = [0, 0, 9, end + 1];
  let table = new Map();
  const emit = (code) => {
    buffer |= code << bits;
    bits += size;
    for (; bits >= 8; bits -= 8, buffer >>= 8) out.push(buffer & 255);
  };
  emit(clear);
  let prefix = indices[0];
  for (const index of indices.subarray(1)) {
    const key = (prefix << 8) | index;
    if (table.has(key)) {
      prefix = table.get(key);
      continue;
    }
    emit(prefix);
    if (next === 4096) {
      emit(clear);
      [table, size, next] = [new Map(), 9, end + 1];
    } else {
      if (next === 1 << size) size++;
      table.set(key, next++);
    }
    prefix = index;
  }
  emit(prefix);
  emit(end);
  if (bits) out.push(buffer & 255);
  return out;
}

/** Keeps a small copy of both pictures for each step. */
const film = {
  width: 640,
  height: 236, // a line of text above
  pictures: [],

  add() {
    const picture = this.pictures.length < FRAMES ? document.createElement("canvas") : this.pictures.shift();
    Object.assign(picture, { width: this.width, height: this.height });
    const ctx = picture.getContext("2d");
    const half = this.width / 2;
    ctx.fillStyle = getComputedStyle(document.body).backgroundColor;
    ctx.fillRect(0, 0, this.width, this.height);
    ["real", "dream"].forEach((id, i) => {
      const [canvas, view] = [`#${id} canvas`, `#${id} .view`].map((x) => document.querySelector(x));
      const height = Math.min(this.height - 24, (half * canvas.height) / canvas.width);
      const width = (height * canvas.width) / canvas.height;
      ctx.fillStyle = getComputedStyle(document.body).color;
      ctx.font = "14px system-ui, sans-serif";
      ctx.fillText(i ? (session.asleep ? "Dream, asleep" : "Dream, awake") : "Reality", i * half + 6, 17);
      ctx.fillStyle = getComputedStyle(view).backgroundColor;
      ctx.fillRect(i * half, 24, width, height);
      ctx.drawImage(canvas, i * half, 24, width, height);
    });
    this.pictures.push(picture);
  },

  /** Offers the file to the visitor. */
  save(name, delay) {
    const look = (picture) =>
      picture.getContext("2d").getImageData(0, 0, this.width, this.height).data;
    const bytes = encodeGif(this.pictures.map(look), this.width, this.height, delay);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type: "image/gif" }));
    link.download = `${name}_dream.gif`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },
};
