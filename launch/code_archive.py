"""The code that evaluating an artifact needs, as one small deterministic archive for the artifact's code stream.

The archive is a tar file compressed with bzip2: the modules of ours that `python -m eval` reaches by import statements,
found by walking them, so that whatever it does not need (optimizers, writers, tokenizer training) stays out by itself.
Comments, docstrings and most annotations of functions are left out; the statements are those of the checkout. The same
sources give the same bytes under the same Python version.
"""

import ast
import bz2
import importlib.util
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("artifact", "eval", "model")
ENTRY_POINT = "eval.__main__"


def build() -> bytes:
    """The archive's bytes: `eval`, and what it imports of `artifact` and `model`."""
    return pack({path: strip(source) for path, source in sources(ENTRY_POINT).items()})


def sources(entry_point: str) -> dict[str, str]:
    """Path in the archive -> source, of `entry_point` and of every module of ours that it reaches by imports."""
    found: dict[str, Path] = {}
    pending = [entry_point]
    while pending:
        module = pending.pop()
        path = module_path(module)
        if path is None or module in found:
            continue
        found[module] = path
        pending += [".".join(parents) for parents in _parents(module)]
        pending += imported_modules(path.read_text(encoding="utf-8"), module)
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found.values()}
    return dict(sorted(files.items()))


def _parents(module: str) -> Iterator[list[str]]:
    parts = module.split(".")
    for length in range(1, len(parts)):
        yield parts[:length]


def module_path(module: str) -> Path | None:
    """The file of a module of ours; None if `module` is none of ours (a class, a function, another library)."""
    if module.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def imported_modules(source: str, module: str) -> list[str]:
    """Names that `import` statements in `source` may load; `from a import b` yields `a` and `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def strip(source: str) -> str:
    """`source` without comments, docstrings and annotations of functions.

    Annotations stay where something reads them: fields of dataclasses, functions under a decorator (torch's custom
    operators take their schema from them).
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
            node.returns = None
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                argument.annotation = None
            for several in (arguments.vararg, arguments.kwarg):
                if several is not None:
                    several.annotation = None
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)] or (
                [] if isinstance(node, ast.Module) else [ast.Pass()]
            )
    return ast.unparse(tree) + "\n"


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def pack(files: dict[str, str]) -> bytes:
    """A tar.bz2 of `files` in path order, without times, owners or anything else that differs between machines."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, text in sorted(files.items()):
            data = text.encode("utf-8")
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return bz2.compress(buffer.getvalue())


def unpack(archive: bytes) -> dict[str, str]:
    """Path -> source of an archive that `pack` made.

    Raises:
        ValueError: the bytes are no such archive, or a path in it leads out of the folder it is read into.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(bz2.decompress(archive)), mode="r:") as tar:
            members = [(member, tar.extractfile(member)) for member in tar]
            files = {member.name: file.read().decode("utf-8") for member, file in members if file is not None}
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise ValueError(f"not a code archive: {error}") from None
    for path in files:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"code archive: {path!r} leads out of its folder")
    return files
