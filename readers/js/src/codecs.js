// FORMAT.md section 7: from the bytes of a part to its symbols.
import { Decompress } from "fzstd";
import { refuse } from "./errors.js";
import { CODEC } from "./manifest.js";

// Returns {symbols, carried}; carried only for RANS.
export function decodePart(part, data, lattice) {
  let result;
  if (part.codec === CODEC.RAW) result = { symbols: raw(data, part.numSymbols) };
  else if (part.codec === CODEC.BITPACK) result = { symbols: bitpack(data, part.numSymbols, part.alphabet) };
  else if (part.codec === CODEC.ZSTD) result = { symbols: zstd(data, part.numSymbols) };
  else result = rans(data, part, lattice);
  for (const symbol of result.symbols) {
    if (symbol >= part.alphabet) refuse("symbol_range", `symbol ${symbol} in an alphabet of ${part.alphabet}`);
  }
  return result;
}

function raw(data, numSymbols) {
  if (data.length !== numSymbols) refuse("raw_length", `${data.length} bytes for ${numSymbols} symbols`);
  return data;
}

function bitpack(data, numSymbols, alphabet) {
  const symbols = new Uint8Array(numSymbols);
  const width = Math.round(Math.log2(alphabet));
  const expected = alphabet === 3 ? Math.ceil(numSymbols / 5) : Math.ceil((numSymbols * width) / 8);
  if (data.length !== expected) refuse("bitpack_length", `${data.length} bytes, expected ${expected}`);
  if (alphabet === 3) {
    if (data.some((byte) => byte > 242)) refuse("symbol_range", "a byte of five ternary symbols above 242");
    for (let i = 0; i < data.length * 5; i++) {
      const trit = Math.floor(data[Math.floor(i / 5)] / 3 ** (i % 5)) % 3;
      if (i < numSymbols) symbols[i] = trit;
      else if (trit) refuse("bitpack_padding", "unused places are not zero");
    }
    return symbols;
  }
  for (let bit = 0; bit < data.length * 8; bit++) {
    const value = (data[bit >> 3] >> (bit & 7)) & 1;
    if (bit < numSymbols * width) symbols[Math.floor(bit / width)] |= value << (bit % width);
    else if (value) refuse("bitpack_padding", "unused bits are not zero");
  }
  return symbols;
}

function zstd(data, numSymbols) {
  const { size, start } = zstdHeader(data);
  if (size !== BigInt(numSymbols)) refuse("zstd_size", `a frame of ${size} bytes, expected ${numSymbols}`);
  if (blocksEnd(data, start) !== data.length) refuse("zstd_frame", "the frame does not end with its part");
  const symbols = new Uint8Array(numSymbols);
  let length = 0;
  const stream = new Decompress((chunk) => {
    if (length + chunk.length > numSymbols) refuse("zstd_frame", "the frame holds more than it states");
    symbols.set(chunk, length);
    length += chunk.length;
  });
  try {
    stream.push(data, true);
  } catch (error) {
    refuse("zstd_frame", `damaged frame: ${error.message}`);
  }
  if (length !== numSymbols) refuse("zstd_frame", "the frame holds less than it states");
  return symbols;
}

function zstdHeader(data) {
  const bad = (what) => refuse("zstd_header", `zstd frame ${what}`);
  if (data.length < 6 || [0x28, 0xb5, 0x2f, 0xfd].some((byte, i) => data[i] !== byte)) bad("without magic");
  const descriptor = data[4];
  if (descriptor & 0x1f) bad("with a dictionary, checksum or reserved bits");
  const single = (descriptor >> 5) & 1;
  const sizeBytes = [single, 2, 4, 8][descriptor >> 6];
  if (sizeBytes === 0) bad("without a size");
  let position = 5;
  if (!single) {
    const window = (2 ** (10 + (data[5] >> 3)) / 8) * (8 + (data[5] & 7));
    if (window > 2 ** 27) bad("with a huge window");
    position++;
  }
  if (data.length < position + sizeBytes) bad("cut in its header");
  let size = 0n;
  for (let i = sizeBytes - 1; i >= 0; i--) size = size * 256n + BigInt(data[position + i]);
  return { size: sizeBytes === 2 ? size + 256n : size, start: position + sizeBytes };
}

// Where the frame's last block ends, from the block headers alone.
function blocksEnd(data, position) {
  for (;;) {
    if (position + 3 > data.length) refuse("zstd_frame", "the frame ends early");
    const header = data[position] | (data[position + 1] << 8) | (data[position + 2] << 16);
    const type = (header >> 1) & 3;
    if (type === 3) refuse("zstd_frame", "reserved block type");
    position += 3 + (type === 1 ? 1 : header >> 3);
    if (header & 1) return position;
  }
}

function ransTable(data, position, alphabet) {
  const bad = (what) => refuse("rans_table", `a frequency table ${what}`);
  if (position + 2 > data.length) bad("ends early");
  const [first, last] = [data[position], data[position + 1]];
  position += 2;
  if (first >= last || last >= alphabet) bad("has a bad range");
  const frequencies = new Uint16Array(256);
  let remaining = 16384;
  for (let symbol = first; symbol < last; symbol++) {
    if (position >= data.length) bad("ends early");
    let frequency = data[position++];
    if (frequency >= 0x80) {
      if (position >= data.length) bad("ends early");
      const high = data[position++];
      if (high < 1 || high >= 0x80) bad("is not in its shortest form");
      frequency = (frequency & 0x7f) + high * 128;
    }
    if (frequency > 16320 || (frequency === 0 && symbol === first)) bad(`holds ${frequency}`);
    frequencies[symbol] = frequency;
    remaining -= frequency;
  }
  if (remaining < 1 || remaining > 16320) bad(`leaves ${remaining}`);
  frequencies[last] = remaining;
  return [{ frequencies, ...slots(frequencies) }, position];
}

function slots(frequencies) {
  const starts = new Uint16Array(256);
  const symbolOfSlot = new Uint8Array(16384);
  let start = 0;
  for (let symbol = 0; symbol < 256; symbol++) {
    starts[symbol] = start;
    symbolOfSlot.fill(symbol, start, start + frequencies[symbol]);
    start += frequencies[symbol];
  }
  return { starts, symbolOfSlot };
}

function rans(data, part, { lines, positions }) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (data.length < 3) refuse("rans_header", "ends in its header");
  const numContexts = data[0];
  const prior = view.getUint16(1, true);
  let at = 3 + 2 * (numContexts - 1);
  if (numContexts < 1 || numContexts > 32 || prior > 32768 || at > data.length) refuse("rans_header", "bad header");
  const thresholds = [];
  for (let i = 0; i < numContexts - 1; i++) thresholds.push(view.getUint16(3 + 2 * i, true));
  if (!thresholds.every((value, i) => value > (i ? thresholds[i - 1] : 0))) refuse("rans_header", "thresholds");
  const tables = [];
  for (let i = 0; i < numContexts; i++) {
    let table;
    [table, at] = ransTable(data, at, part.alphabet);
    tables.push(table);
  }
  const bad = (what) => refuse("rans_stream", what);
  if (data.length < at + 4 * part.lanes || (data.length - at) % 2) bad("cut in states or words");
  const states = Array.from({ length: part.lanes }, (_, lane) => view.getUint32(at + 4 * lane, true));
  if (states.some((state) => state < 65536)) bad("a state is too small");
  at += 4 * part.lanes;

  const symbols = new Uint8Array(lines * positions);
  const sums = new Float64Array(positions).fill(prior * 4);
  const middle = Math.floor(part.alphabet / 2);
  for (let line = 0; line < lines; line++) {
    for (let position = 0; position < positions; position++) {
      const lane = position % part.lanes;
      const mean = Math.floor(sums[position] / (line + 4));
      let context = 0;
      while (context < thresholds.length && thresholds[context] <= mean) context++;
      const { frequencies, starts, symbolOfSlot } = tables[context];
      const slot = states[lane] % 16384;
      const symbol = symbolOfSlot[slot];
      let state = frequencies[symbol] * Math.floor(states[lane] / 16384) + slot - starts[symbol];
      if (state < 65536) {
        if (at >= data.length) bad("the words end early");
        state = state * 65536 + view.getUint16(at, true);
        at += 2;
      }
      states[lane] = state;
      symbols[line * positions + position] = symbol;
      sums[position] += 256 * Math.abs(symbol - middle);
    }
  }
  if (at !== data.length || states.some((state) => Math.floor(state / 65536) !== 1)) bad("does not end as it began");
  const words = states.flatMap((state) => [state & 255, (state >> 8) & 255]);
  if (words.slice(part.carriedBytes).some((byte) => byte !== 0)) bad("carries more than it says");
  return { symbols, carried: Uint8Array.from(words.slice(0, part.carriedBytes)) };
}
