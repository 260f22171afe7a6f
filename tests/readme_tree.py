"""The tree in README.md, from the files themselves: `make readme` writes it, a test checks it.

A Python file's line is the first sentence of its docstring; a preset's is its summary.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN = "<!-- tree: made by `make readme` -->\n```\n"
END = "```\n<!-- end of tree -->\n"
FOLDERS = ("proto", "artifact", "model", "trainer", "eval", "launch", "benchmarks")
SUFFIXES = {".py", ".toml", ".proto", ".md", ".json"}
OTHERS = {
    "proto/artifact.proto": "the schema of an artifact",
    "proto/FORMAT.md": "the format byte by byte, with every rule that a reader checks",
    "eval/report.schema.json": "JSON schema of report.json",
}
GENERATED = {"artifact/artifact_pb2.py": "generated from proto/artifact.proto"}
LINE_CHARACTERS = 118


def files(folder: str) -> list[Path]:
    """The files below a top folder that have a line: sources, presets and specifications, not empty packages."""
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.stat().st_size]
    return sorted(path for path in found if "results" not in path.parts)


def describe(path: Path) -> str:
    """A file in one sentence."""
    name = path.relative_to(ROOT).as_posix()
    if fixed := {**OTHERS, **GENERATED}.get(name):
        return fixed
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text).get("summary", "")
    if path.suffix != ".py":
        return next(line.strip("# ") for line in text.splitlines() if line.strip())
    docstring = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=[.;])\s", docstring, maxsplit=1)[0].rstrip(".;")


def render() -> str:
    """The tree as text, one line a file."""
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder}/")
        for path in files(folder):
            line = f"  {path.relative_to(ROOT / folder).as_posix():<34} {describe(path)}"
            lines.append(line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1].rstrip() + "…")
    return "\n".join(lines) + "\n"


def in_readme() -> str:
    """The tree as README.md has it."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """Puts the tree into README.md."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{README} has no place for the tree")
    README.write_text(before + begin + render() + end + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
