// FORMAT.md section 6: from symbols to float32 weights.
import { decodePart } from "./codecs.js";
import { refuse } from "./errors.js";
import { FLOAT_BYTES, KIND, LOG8, numScales } from "./manifest.js";

const f = Math.fround;
const LOG8_BITS = [
  0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3, 0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
  0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c, 0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d,
];
const LOG8_MANTISSAS = new Float32Array(Uint32Array.from(LOG8_BITS).buffer);

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14);
}

function float8(bits) {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >> 3) & 15;
  const fraction = bits & 7;
  if ((bits & 127) === 127) return NaN;
  return sign * (exponent ? (1 + fraction / 8) * 2 ** (exponent - 7) : (fraction / 8) * 2 ** -6);
}

function floats(planes, floatType, exponent) {
  const size = FLOAT_BYTES[floatType];
  const count = planes.length / size;
  const values = new Float32Array(count);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < count; i++) {
    let word = 0;
    for (let plane = 0; plane < size; plane++) word += planes[plane * count + i] * 2 ** (8 * plane);
    if (floatType === 1) bits[i] = word;
    else if (floatType === 3) bits[i] = word * 65536;
    else if (floatType === 2) values[i] = half(word);
    else if (floatType === 4) values[i] = float8(word);
    else values[i] = LOG8_MANTISSAS[word & 15] * 2 ** (exponent + (word >> 4));
    if (!Number.isFinite(values[i])) refuse("not_finite", "a value is not finite");
  }
  return values;
}

// [{name, shape, weights}] of one group.
export function decodeGroup(group, stream) {
  const decoded = {};
  for (const part of group.parts) {
    const { symbols, carried } = decodePart(part, stream.subarray(0, part.numBytes), group.lattice);
    stream = stream.subarray(part.numBytes);
    if (carried) stream = Uint8Array.from([...carried, ...stream]);
    decoded[part.name] = symbols;
  }
  return group.encoding.kind === KIND.FLOAT ? plain(group, decoded.values) : quantized(group, decoded);
}

function plain({ sets, encoding }, planes) {
  const values = floats(planes, encoding.floatType, 0);
  let at = 0;
  return sets.flatMap(({ names, shape, rows, columns }) =>
    names.map((name) => ({ name, shape, weights: values.subarray(at, (at += rows * columns)) })),
  );
}

function quantized({ sets, encoding, lattice }, decoded) {
  const { kind, bits, floatType, groupSize, scaleExponent, byColumns, permuted } = encoding;
  const { names, shape, rows, columns } = sets[0];
  const scales = floats(decoded.scales, floatType, floatType === LOG8 ? scaleExponent : 0);
  const scalesPerTensor = numScales(sets[0], groupSize);
  const numRows = rows * names.length;
  const offset = { [KIND.SYMMETRIC]: 2 ** (bits - 1), [KIND.TERNARY]: 1 }[kind] ?? 0;
  return names.map((name, tensor) => {
    const order = Array.from({ length: permuted ? rows : 0 }, (_, row) => {
      const i = tensor * rows + row;
      return decoded.permutation[i] + 256 * decoded.permutation[numRows + i];
    });
    if (permuted) {
      const seen = new Set(order.filter((row) => row < rows));
      if (seen.size !== rows) refuse("permutation", `${name}: the row order is no permutation`);
    }
    const weights = new Float32Array(rows * columns);
    for (let stored = 0; stored < rows; stored++) {
      const row = permuted ? order[stored] : stored;
      for (let column = 0; column < columns; column++) {
        const [line, position] = byColumns
          ? [column, tensor * rows + stored]
          : [stored, tensor * columns + column];
        const symbol = decoded.symbols[line * lattice.positions + position];
        const flat = row * columns + column;
        const at = tensor * scalesPerTensor + (groupSize ? Math.floor(flat / groupSize) : row);
        let q = symbol - offset;
        if (kind === KIND.ASYMMETRIC) q = symbol - decoded.zero_points[at];
        if (kind === KIND.BINARY) q = 2 * symbol - 1;
        weights[flat] = f(q * scales[at]);
      }
    }
    return { name, shape, weights };
  });
}

// Adds left @ right to the weights, one component after the other, every operation rounded to float32.
export function correct(weight, left, right) {
  const [rows, columns] = weight.shape;
  const rank = left.shape[1];
  for (let j = 0; j < rank; j++) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const product = f(left.weights[row * rank + j] * right.weights[j * columns + column]);
        weight.weights[row * columns + column] = f(weight.weights[row * columns + column] + product);
      }
    }
  }
}
