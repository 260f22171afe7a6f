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
BEGIN_PRESETS = "<!-- presets: made by `make readme` -->\n"
END_PRESETS = "<!-- end of presets -->\n"
FOLDERS = ("proto", "artifact", "readers", "model", "trainer", "eval", "launch", "benchmarks")
SUFFIXES = {".py", ".toml", ".proto", ".md", ".json", ".html", ".css", ".js"}
NOT_OURS = {"results", "node_modules", "package.json", "package-lock.json"}
OTHERS = {
    "proto/artifact.proto": "the schema of an artifact",
    "proto/FORMAT.md": "the format byte by byte, with every rule that a reader checks",
    "eval/report.schema.json": "JSON schema of report.json",
    "launch/measured.json": "what was measured, for the forecasts of dry runs",
    "launch/submission.schema.json": "JSON schema of submission.json",
    "launch/report/page.css": "how a report looks, in light and in dark",
    "launch/report/page.html": "the frame of a report",
    "launch/report/page.js": "draws a report's figures in the browser",
}
GENERATED = {"artifact/artifact_pb2.py": "generated from proto/artifact.proto"}
LINE_CHARACTERS = 118


def files(folder: str) -> list[Path]:
    """The files below a top folder that have a line: sources, presets and specifications, not empty packages."""
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.stat().st_size]
    return sorted(path for path in found if not NOT_OURS & set(path.parts))


def describe(path: Path) -> str:
    """A file in one sentence."""
    name = path.relative_to(ROOT).as_posix()
    if fixed := {**OTHERS, **GENERATED}.get(name):
        return fixed
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text).get("summary", "")
    if path.suffix != ".py":
        return next(line.strip("#/ ") for line in text.splitlines() if line.strip())
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


def render_presets() -> str:
    """A table of the leaderboard's presets by rank, from the presets themselves."""
    rows = ["| rank | id | parameters | published BPB | what it is |", "|---|---|---|---|---|"]
    tables = [
        tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "launch/presets").glob("*.toml"))
    ]
    for table in sorted(tables, key=lambda table: (table.get("rank") is None, table.get("rank") or 0, table["id"])):
        expect = table.get("expect", {})
        total, bpb = expect.get("params_total"), expect.get("published_bpb")
        parameters = "" if total is None else f"{total - expect.get('params_unused', 0):,}"
        published = "" if bpb is None else f"{bpb:.4f}"
        rows.append(f"| {table.get('rank', '')} | {table['id']} | {parameters} | {published} | {table['summary']} |")
    return "\n".join(rows) + "\n"


def in_readme(begin: str = BEGIN, end: str = END) -> str:
    """The tree, or what stands between other marks, as README.md has it."""
    return README.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]


def main() -> int:
    """Puts the tree and the presets into README.md."""
    for begin, end, text in ((BEGIN, END, render()), (BEGIN_PRESETS, END_PRESETS, render_presets())):
        before, found, rest = README.read_text(encoding="utf-8").partition(begin)
        _, stop, after = rest.partition(end)
        if not (found and stop):
            raise SystemExit(f"{README} has no place for {begin.strip()}")
        README.write_text(before + begin + text + end + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
