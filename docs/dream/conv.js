"use strict";
/* The convolutions of an agent that learned from pixels: ImageEncoder and ImageDecoder of
dreamer/networks.py, for square images of even sides.

An image is a flat Float32Array (side, side, channels), as pixels are. A kernel lies in memory as the
image does, (row, column, in), with the weights of four outputs beside each other, so the innermost loop
runs through both without a jump. */

/** A convolution of kernel 4 and stride 2 that halves the side, or one that doubles it. That is four of
 * kernel 2 and stride 1: in one direction, an even pixel is made of what lies under 3 and 1 of the
 * kernel, an odd one of what lies under 2 and 0. */
class Conv {
  /** weight: (out, in, 4, 4) as unpack gives it. */
  constructor({ shape: [outs, ins], data, scale }, bias, doubles) {
    Object.assign(this, { outs, ins, bias: bias.data, doubles, size: doubles ? 2 : 4 });
    const { size } = this;
    const count = size * size * ins; // of one output
    this.parts = (doubles ? [[0, 0], [0, 1], [1, 0], [1, 1]] : [[0, 0]]).map(([down, right]) => {
      const place = (odd, k) => (doubles ? 3 - odd - 2 * k : k);
      const kernel = new Float32Array(Math.ceil(outs / 4) * 4 * count); // the last may be zeros
      for (let o = 0; o < outs; o++) {
        for (let i = 0; i < count; i++) {
          const [row, column] = [Math.floor(i / ins / size), Math.floor(i / ins) % size];
          const at = (o * ins + (i % ins)) * 16 + 4 * place(down, row) + place(right, column);
          kernel[((o >> 2) * count + i) * 4 + (o & 3)] = data[at] * (scale ? scale[o] : 1);
        }
      }
      return { down, right, kernel };
    });
  }

  run(image, side) {
    const { outs, ins, doubles, parts } = this;
    const padded = bordered(image, side, ins);
    const out = new Float32Array((doubles ? 4 * side ** 2 : side ** 2 / 4) * outs);
    for (const part of parts) this.lay(part, padded, side, out);
    return out;
  }

  /** One kernel on all of its places: two neighbours and four outputs at a time, for each number that is
   * read to be used more than once. */
  lay({ down, right, kernel }, image, side, out) {
    const { outs, ins, bias, size, doubles } = this;
    const [places, stride, spread] = doubles ? [side, 1, 2] : [side >> 1, 2, 1];
    const [run, width, hop] = [size * ins, (side + 2) * ins, stride * ins];
    for (let place = 0; place < places * places; place += 2) {
      const column = place % places;
      const row = (place - column) / places;
      const from = (row * stride + down) * width + (column * stride + right) * ins;
      const to = ((row * spread + down) * places * spread + column * spread + right) * outs;
      for (let o = 0, i = 0; o < outs; o += 4) {
        let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        for (let k = 0; k < size; k++) {
          const end = from + k * width + run;
          for (let j = end - run; j < end; j++, i += 4) {
            const x = image[j], y = image[j + hop];
            const p = kernel[i], q = kernel[i + 1], r = kernel[i + 2], s = kernel[i + 3];
            a += p * x;
            b += q * x;
            c += r * x;
            d += s * x;
            e += p * y;
            f += q * y;
            g += r * y;
            h += s * y;
          }
        }
        const sums = [a, b, c, d, e, f, g, h];
        for (let n = 0; n < 4 && o + n < outs; n++) {
          out[to + o + n] = sums[n] + bias[o + n];
          out[to + spread * outs + o + n] = sums[n + 4] + bias[o + n];
        }
      }
    }
  }
}

/** The image with a border of zeros, one pixel wide. */
function bordered(image, side, channels) {
  const out = new Float32Array((side + 2) ** 2 * channels);
  const row = side * channels;
  for (let y = 0; y < side; y++) {
    out.set(image.subarray(y * row, (y + 1) * row), ((y + 1) * (side + 2) + 1) * channels);
  }
  return out;
}

/** The weight and bias of each layer of a sequence, in order. */
function layersOf(tensors, name) {
  const numbers = Object.keys(tensors).map((key) => key.match(`^${name}\\.(\\d+)\\.weight$`)?.[1]);
  return numbers.filter(Boolean).sort((a, b) => a - b).map((i) => ({
    weight: tensors[`${name}.${i}.weight`],
    bias: tensors[`${name}.${i}.bias`],
  }));
}

/** Stages of Conv -> Norm -> SiLU: pixels from 0 to 255 -> embed. */
class ImageEncoder {
  constructor(tensors, name) {
    const layers = layersOf(tensors, name);
    this.norms = layers.filter((_, i) => i % 2);
    this.convs = layers.filter((_, i) => i % 2 === 0).map((x) => new Conv(x.weight, x.bias, false));
    this.side = 4 * 2 ** this.convs.length;
  }

  run(pictures) {
    return pictures.map((pixels) => {
      let [image, side] = [new Float32Array(pixels).map((x) => x / 255 - 0.5), this.side];
      this.convs.forEach((conv, i) => {
        image = normSilu(this.norms[i], conv.run(image, side));
        side /= 2;
      });
      return image;
    });
  }
}

/** Linear, then stages of Norm -> SiLU -> Conv: states -> pixels, where 0 is black and 1 is white. */
class ImageDecoder {
  constructor(tensors, name) {
    const [linear, ...layers] = layersOf(tensors, name);
    this.linear = linear;
    this.norms = layers.filter((_, i) => i % 2 === 0);
    this.convs = layers.filter((_, i) => i % 2).map((x) => new Conv(x.weight, x.bias, true));
  }

  run(xs) {
    return linear(this.linear, xs).map((x) => {
      const channels = this.convs[0].ins;
      let side = Math.sqrt(x.length / channels);
      let image = new Float32Array(x.length); // (C, H, W) -> (H, W, C)
      for (let i = 0; i < x.length; i++) image[(i % side ** 2) * channels + Math.floor(i / side ** 2)] = x[i];
      this.convs.forEach((conv, i) => {
        image = conv.run(normSilu(this.norms[i], image), side);
        side *= 2;
      });
      return image.map((value) => value + 0.5);
    });
  }
}
