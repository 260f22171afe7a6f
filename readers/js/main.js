// node main.js FILE...: one line of JSON for each file, with its tensors' shapes and SHA-256 of their float32 bytes, or the
// code with which it is refused.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { ArtifactError } from "./src/errors.js";
import { readArtifact } from "./src/reader.js";

function describe(path) {
  try {
    const { tensors, code } = readArtifact(readFileSync(path));
    const entries = [...tensors].map(([name, { shape, weights }]) => {
      const bytes = Buffer.from(weights.buffer, weights.byteOffset, weights.byteLength);
      return [name, { shape, sha256: createHash("sha256").update(bytes).digest("hex") }];
    });
    return { code_bytes: code.length, tensors: Object.fromEntries(entries) };
  } catch (error) {
    if (!(error instanceof ArtifactError)) throw error;
    return { error: error.code };
  }
}

for (const path of process.argv.slice(2)) console.log(JSON.stringify({ path, ...describe(path) }));
