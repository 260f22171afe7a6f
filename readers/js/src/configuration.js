// FORMAT.md section 4: canonical JSON. Numbers are kept as their text, so that 1 and 1.0 stay apart.
import { refuse } from "./errors.js";
import { decodeUtf8 } from "./wire.js";

const bad = (what) => refuse("configuration", `the configuration ${what}`);
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const SHORT = { '"': '"', "\\": "\\", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };
const WORDS = { true: true, false: false, null: null };

// Strings ascend by code points; JavaScript's own order is that of UTF-16 units.
function comesBefore(a, b) {
  const left = Array.from(a, (c) => c.codePointAt(0));
  const right = Array.from(b, (c) => c.codePointAt(0));
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    if (left[i] !== right[i]) return left[i] < right[i];
  }
  return left.length < right.length;
}

export function parseConfiguration(bytes) {
  if (bytes.length > 65536) bad("is too long");
  const text = decodeUtf8(bytes, "configuration");
  if (text[0] !== "{") bad("is not an object");
  let at = 0;

  function value(depth) {
    if (depth > 16) bad("is nested too deep");
    if (text[at] === "{") return object(depth);
    if (text[at] === "[") return array(depth);
    if (text[at] === '"') return string();
    for (const [word, meaning] of Object.entries(WORDS)) {
      if (text.startsWith(word, at)) {
        at += word.length;
        return meaning;
      }
    }
    return number();
  }

  function object(depth) {
    const result = new Map();
    let previous;
    at++;
    if (text[at] === "}") {
      at++;
      return result;
    }
    for (;;) {
      if (text[at] !== '"') bad(`lacks a key at ${at}`);
      const key = string();
      if (previous !== undefined && !comesBefore(previous, key)) bad(`has the key ${key} out of order`);
      previous = key;
      if (text[at] !== ":") bad(`lacks a colon at ${at}`);
      at++;
      result.set(key, value(depth + 1));
      const mark = text[at++];
      if (mark === "}") return result;
      if (mark !== ",") bad(`lacks a comma at ${at}`);
    }
  }

  function array(depth) {
    const result = [];
    at++;
    if (text[at] === "]") {
      at++;
      return result;
    }
    for (;;) {
      result.push(value(depth + 1));
      const mark = text[at++];
      if (mark === "]") return result;
      if (mark !== ",") bad(`lacks a comma at ${at}`);
    }
  }

  function string() {
    let result = "";
    at++;
    for (;;) {
      PLAIN.lastIndex = at;
      const piece = PLAIN.exec(text)[0];
      result += piece;
      at += piece.length;
      if (text[at] === '"') {
        at++;
        return result;
      }
      if (text[at] !== "\\") bad(`has an open string at ${at}`);
      const letter = text[at + 1];
      if (letter !== undefined && Object.hasOwn(SHORT, letter)) {
        result += SHORT[letter];
        at += 2;
        continue;
      }
      const digits = text.slice(at + 2, at + 6);
      const character = String.fromCharCode(parseInt(digits, 16));
      if (letter !== "u" || !/^00[01][0-9a-f]$/.test(digits) || Object.values(SHORT).includes(character)) {
        bad(`has a bad escape at ${at}`);
      }
      result += character;
      at += 6;
    }
  }

  function number() {
    NUMBER.lastIndex = at;
    const match = NUMBER.exec(text);
    if (!match || match[0].length > 40) bad(`has no value at ${at}`);
    if (!Number.isFinite(Number(match[0]))) bad(`has a number out of range at ${at}`);
    at += match[0].length;
    return match[0];
  }

  const result = value(0);
  if (at !== text.length) bad(`has text after its end`);
  return result;
}
