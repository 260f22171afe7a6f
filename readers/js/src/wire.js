// FORMAT.md section 3: the strict walk over protobuf wire bytes.
import { refuse } from "./errors.js";

const WIRE_TYPES = { uint32: 0, bool: 0, enum: 0, fixed32: 5, fixed64: 1, bytes: 2, string: 2, packed: 2, message: 2 };

const field = (name, kind, options = {}) => ({ name, kind, repeated: false, required: false, ...options });
const required = { required: true };

const TENSOR_SET = {
  1: field("pattern", "string", required),
  2: field("count", "uint32"),
  3: field("indices", "packed"),
  4: field("shape", "packed"),
};
const ENCODING = {
  1: field("kind", "enum", { required: true, maximum: 5 }),
  2: field("float_type", "enum", { required: true, maximum: 5 }),
  3: field("bits", "uint32"),
  4: field("group_size", "uint32"),
  5: field("scale_exponent", "uint32"),
  6: field("order", "enum", { maximum: 1 }),
  7: field("permuted", "bool", { maximum: 1 }),
};
const PART = {
  1: field("codec", "enum", { maximum: 4 }),
  2: field("num_bytes", "uint32"),
  3: field("carried_bytes", "uint32"),
  4: field("lanes", "uint32"),
};
const GROUP = {
  1: field("tensors", "message", { repeated: true, required: true, message: TENSOR_SET }),
  2: field("role", "enum", { maximum: 2 }),
  3: field("encoding", "message", { required: true, message: ENCODING }),
  4: field("part", "message", { repeated: true, required: true, message: PART }),
  5: field("crc32", "fixed32"),
};
const TIE = { 1: field("name", "string", required), 2: field("target", "string", required) };

export const MANIFEST = {
  1: field("version", "uint32", required),
  2: field("required_features", "packed"),
  3: field("optional_features", "packed"),
  4: field("tokenizer_sha256", "bytes", required),
  5: field("configuration", "bytes", required),
  6: field("group", "message", { repeated: true, message: GROUP }),
  7: field("tie", "message", { repeated: true, message: TIE }),
  8: field("code_bytes", "uint32"),
  9: field("code_crc32", "fixed32"),
};
export const ARTIFACT = {
  1: field("magic", "fixed64", required),
  2: field("manifest", "bytes", required),
  3: field("stream", "bytes", { repeated: true }),
  4: field("code", "bytes", { required: true, presentWhenEmpty: true }),
  5: field("sha256", "bytes", required),
};

function varint(data, position, end) {
  let value = 0;
  for (let index = 0; index < 5; index++) {
    if (position + index >= end) refuse("wire_truncated", `a number runs past byte ${end}`);
    const byte = data[position + index];
    value += (byte & 0x7f) * 2 ** (7 * index);
    if (byte < 0x80) {
      if (byte === 0 && index > 0) refuse("varint_not_minimal", `overlong number at byte ${position}`);
      return [value, position + index + 1];
    }
  }
  return refuse("varint_too_long", `long number at byte ${position}`);
}

// Checks data[start, end) against a message's table; returns [{name, bytes}] of its fields in file order.
export function walk(data, message, start = 0, end = data.length) {
  const found = [];
  const seen = new Set();
  let position = start;
  let previous = 0;
  while (position < end) {
    let tag;
    [tag, position] = varint(data, position, end);
    const number = Math.floor(tag / 8);
    const entry = Object.hasOwn(message, number) ? message[number] : undefined;
    if (!entry) refuse("unknown_field", `unknown field ${number}`);
    if (tag % 8 !== WIRE_TYPES[entry.kind]) refuse("wire_type", `${entry.name} has wire type ${tag % 8}`);
    if (number === previous && !entry.repeated) refuse("duplicate_field", `${entry.name} is repeated`);
    if (number < previous) refuse("field_order", `${entry.name} is out of order`);
    previous = number;
    seen.add(number);
    const [from, to] = payload(data, entry, position, end);
    checkValue(data, entry, from, to);
    found.push({ name: entry.name, bytes: data.subarray(from, to) });
    position = to;
  }
  for (const [number, entry] of Object.entries(message)) {
    if (entry.required && !seen.has(Number(number))) refuse("missing_field", `${entry.name} is missing`);
  }
  return found;
}

function payload(data, entry, position, end) {
  const wireType = WIRE_TYPES[entry.kind];
  if (wireType === 0) return [position, varint(data, position, end)[1]];
  let length = wireType === 1 ? 8 : 4;
  if (wireType === 2) [length, position] = varint(data, position, end);
  if (length > end - position) refuse("wire_truncated", `${entry.name} runs past byte ${end}`);
  return [position, position + length];
}

function checkValue(data, entry, start, end) {
  let isDefault;
  if (WIRE_TYPES[entry.kind] === 0) {
    const [value] = varint(data, start, end);
    if (value > (entry.maximum ?? 0xffffffff)) refuse("value_range", `${entry.name} is ${value}`);
    isDefault = value === 0;
  } else if (WIRE_TYPES[entry.kind] === 2) {
    isDefault = start === end && entry.kind !== "message" && !entry.repeated;
  } else {
    isDefault = data.subarray(start, end).every((byte) => byte === 0);
  }
  if (isDefault && !entry.presentWhenEmpty) refuse("explicit_default", `${entry.name} spells out its default`);
  if (entry.kind === "packed") {
    while (start < end) {
      let value;
      [value, start] = varint(data, start, end);
      if (value > 0xffffffff) refuse("value_range", `${entry.name} holds ${value}`);
    }
  } else if (entry.kind === "string") {
    decodeUtf8(data.subarray(start, end), "utf8");
  } else if (entry.kind === "message") {
    walk(data, entry.message, start, end);
  }
}

export function decodeUtf8(bytes, code) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return refuse(code, "text is not UTF-8");
  }
}
