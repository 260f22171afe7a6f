// Reads an artifact: FORMAT.md sections 1 and 2, then the rest in order.
import { createHash } from "node:crypto";
import { refuse } from "./errors.js";
import { parseManifest } from "./manifest.js";
import { correct, decodeGroup } from "./tensors.js";
import { ARTIFACT, MANIFEST, walk } from "./wire.js";

const HEADER = Buffer.from("\x09ALBATRS\n", "latin1");

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 255];
  return (crc ^ 0xffffffff) >>> 0;
}

function checkFrame(data) {
  const head = data.subarray(0, HEADER.length);
  if (Buffer.compare(head, HEADER.subarray(0, head.length)) !== 0) refuse("magic", "not an artifact");
  if (data.length < 43) refuse("file_too_short", `${data.length} bytes`);
  if (data.length > 2 ** 30) refuse("file_too_long", `${data.length} bytes`);
  const trailer = data.length - 34;
  if (data[trailer] !== 0x2a || data[trailer + 1] !== 0x20) refuse("trailer", "the trailer is missing");
  const digest = createHash("sha256").update(data.subarray(0, trailer)).digest();
  if (Buffer.compare(digest, data.subarray(trailer + 2)) !== 0) refuse("sha256", "the file is damaged");
}

// {configuration, code, tensors: Map name -> {shape, weights: Float32Array}}; throws ArtifactError.
export function readArtifact(data) {
  checkFrame(data);
  const fields = walk(data, ARTIFACT);
  const named = (name) => fields.filter((entry) => entry.name === name).map((entry) => entry.bytes);
  const [manifestBytes] = named("manifest");
  const [code] = named("code");
  const streams = named("stream");
  if (manifestBytes.length > 2 ** 18) refuse("manifest_too_long", `manifest of ${manifestBytes.length} bytes`);
  walk(manifestBytes, MANIFEST);
  const lengths = streams.map((stream) => stream.length);
  const { message, configuration, groups } = parseManifest(manifestBytes, lengths, code.length);
  groups.forEach((group, index) => {
    if (crc32(streams[index]) !== group.crc32) refuse("crc32", `stream ${index} is damaged`);
  });
  if (crc32(code) !== message.codeCrc32) refuse("crc32", "the code is damaged");

  const byRole = [new Map(), new Map(), new Map()];
  groups.forEach((group, index) => {
    for (const tensor of decodeGroup(group, streams[index])) byRole[group.role].set(tensor.name, tensor);
  });
  const [tensors, left, right] = byRole;
  for (const [name, factor] of left) correct(tensors.get(name), factor, right.get(name));
  for (const { weights } of tensors.values()) {
    if (!weights.every(Number.isFinite)) refuse("not_finite", "a weight is too large for float32");
  }
  for (const { name, target } of message.tie) tensors.set(name, tensors.get(target));
  return { configuration, code, tensors };
}
