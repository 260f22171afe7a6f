"""A small English corpus that every Python installation carries: the language reference and the standard library's
documentation.

`make quickstart` trains on it, so that a first run needs no download. A document is one topic of `pydoc_data`, or one
module: its docstrings and its explanatory comments in the order of the source. Sources are parsed, never imported.
Modules of one package and the topics are split by a hash of their name; a paragraph stands in one document only, and
those of validation documents are taken out of training.
"""

import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from model.errors import InputError

_VALIDATION_SHARE = 20  # one name in so many
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "__pycache__",
    "__phello__",
}
_MIN_DOCUMENT_CHARACTERS = 200
_MIN_PARAGRAPH_CHARACTERS = 60  # shorter ones ("Example:") may repeat
_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#(?:[ \t].*)?\n){3,}", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#[ ]?", re.MULTILINE)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_documentation(library: Path | None = None) -> tuple[list[str], list[str]]:
    """(training documents, validation documents) of a standard library, by default this interpreter's; the same for
    each of its releases.
    """
    library = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    train: list[str] = []
    val: list[str] = []
    for name, text in sorted((*_topics(library), *_modules(library))):
        digest = hashlib.sha256(
            name.partition("/")[0].encode() if not name.startswith("topic/") else name.encode()
        ).digest()
        (val if int.from_bytes(digest[:4], "big") % _VALIDATION_SHARE == 0 else train).append(text)
    seen: set[str] = set()
    val = _without_repetitions(val, seen)
    train = _without_repetitions(train, seen)
    if not train or not val:
        raise InputError(f"{library}: this Python's standard library carries no documentation sources")
    return train, val


def write_python_documentation(folder: str | Path) -> None:
    """Write the corpus as train.jsonl and val.jsonl, which `data prepare` takes as an input directory."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in zip(("train", "val"), python_documentation(), strict=True):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _topics(library: Path) -> Iterator[tuple[str, str]]:
    """The values of `topics = {...}` in pydoc_data/topics.py."""
    path = library / "pydoc_data" / "topics.py"
    tree = _parse(path) if path.is_file() else None
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                    continue
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"topic/{key.value}", value.value


def _modules(library: Path) -> Iterator[tuple[str, str]]:
    for path in library.rglob("*.py"):
        name = path.relative_to(library)
        if _LEFT_OUT.isdisjoint(name.parts) and (tree := _parse(path)) is not None:
            yield name.as_posix(), _module_text(tree, path.read_bytes().decode("utf-8", "ignore"))


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # the library holds templates and broken examples
        return None


def _module_text(tree: ast.Module, source: str) -> str:
    parts = [
        (node.body[0].lineno, docstring)
        for node in ast.walk(tree)
        if isinstance(node, _DOCUMENTED) and (docstring := ast.get_docstring(node))
    ]
    for block in _COMMENT_BLOCK.finditer(source):
        text = _COMMENT_MARK.sub("", block.group()).strip()
        if _is_prose(text):
            parts.append((source.count("\n", 0, block.start()) + 1, text))
    return "\n\n".join(text for _, text in sorted(parts))


def _is_prose(text: str) -> bool:
    """Whether a comment reads as sentences rather than as code put aside."""
    letters = sum(char.isalpha() or char in " ,.\n" for char in text)
    return letters > 0.93 * len(text) and "." in text and len(text) >= _MIN_PARAGRAPH_CHARACTERS


def _without_repetitions(documents: list[str], seen: set[str]) -> list[str]:
    """The documents without the paragraphs met before; `seen` grows."""
    kept = []
    for document in documents:
        paragraphs = []
        for paragraph in re.split(r"\n[ \t]*\n", document.strip("\n")):
            key = " ".join(paragraph.split())
            if key and not (len(key) >= _MIN_PARAGRAPH_CHARACTERS and key in seen):
                seen.add(key)
                paragraphs.append(paragraph.rstrip())
        text = "\n\n".join(paragraphs)
        if len(text) >= _MIN_DOCUMENT_CHARACTERS:
            kept.append(text + "\n")
    return kept
