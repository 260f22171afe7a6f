// An artifact that breaks a rule of FORMAT.md; `code` is the rule's code.
export class ArtifactError extends Error {
  constructor(code, message) {
    super(`${message} [${code}]`);
    this.code = code;
  }
}

export function refuse(code, message) {
  throw new ArtifactError(code, message);
}
