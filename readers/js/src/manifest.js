// FORMAT.md section 5: what a manifest must obey. The message is decoded by protobufjs after the strict walk.
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";
import { parseConfiguration } from "./configuration.js";
import { refuse } from "./errors.js";

const schema = fileURLToPath(new URL("../../../proto/artifact.proto", import.meta.url));
const root = protobuf.loadSync(schema);
const Manifest = root.lookupType("albatross.artifact.v1.Manifest");

export const KIND = { FLOAT: 1, SYMMETRIC: 2, ASYMMETRIC: 3, TERNARY: 4, BINARY: 5 };
export const CODEC = { RAW: 0, BITPACK: 1, ZSTD: 2, RANS: 3 };
export const FLOAT_BYTES = { 1: 4, 2: 2, 3: 2, 4: 1, 5: 1 };
export const LOG8 = 5;
const FLOAT8 = 4;
const MAX_WEIGHTS = 2 ** 32;
const BASE_RANS_STEPS = 16384;
const RANS_SYMBOLS_PER_STEP = 128;

export function parseManifest(bytes, streamLengths, codeLength) {
  const message = Manifest.decode(bytes);
  if (message.version !== 1) refuse("version", `version ${message.version}`);
  for (const list of [message.requiredFeatures, message.optionalFeatures]) {
    if (!ascending(list)) refuse("feature_list", "feature numbers are not ascending");
  }
  if (message.requiredFeatures.length) refuse("required_feature", `needs ${message.requiredFeatures}`);
  if (message.tokenizerSha256.length !== 32) refuse("tokenizer_sha256", "tokenizer hash of another length");
  const configuration = parseConfiguration(message.configuration);
  if (message.group.length > 4096) refuse("num_groups", `${message.group.length} groups`);
  if (message.group.length !== streamLengths.length) refuse("stream_count", `${streamLengths.length} streams`);
  const totals = { tensors: 0, weights: 0, steps: BASE_RANS_STEPS * RANS_SYMBOLS_PER_STEP };
  const groups = message.group.map((group, index) => checkGroup(group, streamLengths[index], totals));
  const weights = checkNames(groups);
  checkTies(message.tie, weights);
  if (message.codeBytes !== codeLength) refuse("code_length", `${codeLength} bytes of code`);
  return { message, configuration, groups };
}

const ascending = (list) => list.every((value, index) => index === 0 || list[index - 1] < value);

function checkGroup(group, streamLength, totals) {
  const sets = group.tensors.map((set) => checkSet(set, totals));
  const encoding = checkEncoding(group.encoding, sets);
  const shapes = partShapes(encoding, sets);
  if (group.part.length !== shapes.length) refuse("part_count", `${group.part.length} parts`);
  const parts = group.part.map((part, index) => ({ ...shapes[index], ...plainPart(part) }));
  for (const part of parts) {
    const allowed = part.codec <= CODEC.ZSTD || (part.codec === CODEC.RANS && part.name === "symbols");
    if (!allowed) refuse("codec", `codec ${part.codec} for ${part.name}`);
  }
  totals.weights += sum(sets.map((set) => set.names.length * set.rows * set.columns));
  if (totals.weights > MAX_WEIGHTS) refuse("num_weights", "too many weights");
  for (const part of parts) {
    if (part.numSymbols > 65536 + 2048 * part.numBytes) refuse("expansion", `${part.name}: too many symbols`);
  }
  const lattice = encoding.kind === KIND.FLOAT ? null : latticeOf(encoding, sets[0]);
  checkLanes(parts, lattice, totals);
  const length = sum(parts.map((part) => part.numBytes - part.carriedBytes));
  if (length !== streamLength) refuse("stream_length", `stream of ${streamLength} bytes, parts of ${length}`);
  return { sets, encoding, parts, lattice, role: group.role, crc32: group.crc32 };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const plainPart = ({ codec, numBytes, carriedBytes, lanes }) => ({ codec, numBytes, carriedBytes, lanes });

function checkSet({ pattern, count, indices, shape }, totals) {
  const places = pattern.split("#").length - 1;
  if (!/^[A-Za-z0-9_./#-]{1,200}$/.test(pattern) || pattern.endsWith("\n") || places > 1) {
    refuse("pattern", `bad name ${pattern}`);
  }
  const numbered = count > 0 || indices.length > 0;
  const last = indices[indices.length - 1];
  if (numbered !== (places === 1) || (count > 0 && indices.length > 0)) refuse("indices", `${pattern}: layers`);
  if (indices.length && (!ascending(indices) || last > 65535 || last === indices.length - 1)) {
    refuse("indices", `${pattern}: layers not in canonical form`);
  }
  if (count > 65536) refuse("indices", `${pattern}: ${count} layers`);
  // BigInt: the product of eight 32-bit numbers is not exact in a double.
  const size = shape.reduce((product, n) => product * BigInt(Math.max(n, 1)), 1n);
  if (shape.length > 8 || size > BigInt(MAX_WEIGHTS)) refuse("shape", `${pattern}: shape ${shape}`);
  totals.tensors += numbered ? Math.max(count, indices.length) : 1;
  if (totals.tensors > 8192) refuse("num_tensors", "too many tensors");
  const layers = indices.length ? indices : Array.from({ length: count }, (_, layer) => layer);
  const names = numbered ? layers.map((layer) => pattern.replace("#", String(layer))) : [pattern];
  const columns = shape.length ? shape[shape.length - 1] : 1;
  const rows = shape.slice(0, -1).reduce((product, n) => product * n, 1);
  return { names, shape, rows, columns };
}

function checkEncoding(message, sets) {
  const { kind, floatType, bits, groupSize, scaleExponent, order, permuted } = message;
  let valid;
  if (kind === KIND.FLOAT) {
    valid = floatType !== LOG8 && !bits && !groupSize && !scaleExponent && !order && !permuted;
  } else {
    const integer = kind === KIND.SYMMETRIC || kind === KIND.ASYMMETRIC;
    valid = sets.length === 1 && floatType !== FLOAT8 && (integer ? bits >= 2 && bits <= 8 : bits === 0);
    valid &&= floatType === LOG8 ? scaleExponent >= -126 && scaleExponent <= 112 : scaleExponent === 0;
    valid &&= !permuted || sets[0].rows <= 65536;
  }
  if (!valid) refuse("encoding", "the fields of an encoding do not fit");
  const alphabet = { 1: 256, 4: 3, 5: 2 }[kind] ?? 2 ** bits;
  return { kind, floatType, bits, groupSize, scaleExponent, byColumns: order === 1, permuted, alphabet };
}

export function numScales(set, groupSize) {
  return groupSize === 0 ? set.rows : Math.ceil((set.rows * set.columns) / groupSize);
}

function partShapes(encoding, sets) {
  const count = (per) => sum(sets.map((set) => set.names.length * per(set)));
  const weights = count((set) => set.rows * set.columns);
  const { kind, floatType, alphabet } = encoding;
  if (kind === KIND.FLOAT) return [{ name: "values", numSymbols: weights * FLOAT_BYTES[floatType], alphabet }];
  const scales = count((set) => numScales(set, encoding.groupSize));
  const shapes = [
    { name: "symbols", numSymbols: weights, alphabet },
    { name: "scales", numSymbols: scales * FLOAT_BYTES[floatType], alphabet: 256 },
  ];
  if (kind === KIND.ASYMMETRIC) shapes.push({ name: "zero_points", numSymbols: scales, alphabet });
  if (encoding.permuted) {
    shapes.push({ name: "permutation", numSymbols: 2 * count((set) => set.rows), alphabet: 256 });
  }
  return shapes;
}

function latticeOf(encoding, set) {
  const [lines, positions] = encoding.byColumns ? [set.columns, set.rows] : [set.rows, set.columns];
  return { lines, positions: positions * set.names.length };
}

function checkLanes(parts, lattice, totals) {
  parts.forEach((part, index) => {
    const { lanes, carriedBytes } = part;
    let valid;
    if (part.codec === CODEC.RANS) {
      const following = sum(parts.slice(index + 1).map((later) => later.numBytes));
      valid = lanes >= 1 && lanes <= 16384 && carriedBytes <= Math.min(2 * lanes, following);
      valid &&= lattice.lines >= 1 && lattice.lines <= 65536 && lattice.positions >= 1;
      if (valid) {
        const steps = lattice.lines * Math.ceil(lattice.positions / lanes);
        totals.steps += lattice.lines * lattice.positions - RANS_SYMBOLS_PER_STEP * steps;
        valid = totals.steps >= 0;
      }
    } else {
      valid = lanes === 0 && carriedBytes === 0;
    }
    if (!valid) refuse("lanes", `lanes of ${part.name}`);
  });
}

function checkNames(groups) {
  const byRole = [new Map(), new Map(), new Map()];
  for (const { sets, role, encoding } of groups) {
    for (const { names, shape } of sets) {
      for (const name of names) {
        if (byRole[role].has(name) || name.length > 200) refuse("duplicate_tensor", `${name} occurs twice`);
        byRole[role].set(name, { shape, kind: encoding.kind });
      }
    }
  }
  const [weights, left, right] = byRole;
  for (const name of [...left.keys(), ...right.keys()]) {
    const [w, a, b] = byRole.map((map) => map.get(name));
    const fits = w && a && b && [w, a, b].every(({ shape }) => shape.length === 2) && w.kind !== KIND.FLOAT;
    const rank = fits ? a.shape[1] : 0;
    const joined = fits && a.shape[0] === w.shape[0] && b.shape[0] === rank && b.shape[1] === w.shape[1];
    if (!joined || rank < 1 || rank > 4096) refuse("low_rank", `${name}: the correction does not fit`);
  }
  return weights;
}

function checkTies(ties, weights) {
  if (!ascending(ties.map((tie) => tie.name))) refuse("tie", "tied names are not ascending");
  for (const { name, target } of ties) {
    const valid = /^[A-Za-z0-9_./-]{1,200}$/.test(name) && !weights.has(name) && weights.has(target);
    if (!valid) refuse("tie", `${name} cannot be tied`);
  }
}
