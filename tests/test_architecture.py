"""Rules of the house that import-linter cannot express: optional packages that may stand in one file only."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("artifact", "eval", "launch", "model", "trainer")


def imported_top_level_names(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.fixture(scope="module")
def importers() -> dict[str, set[str]]:
    """Top-level package name -> the files (relative, posix) that import it."""
    found = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in imported_top_level_names(path.read_text(encoding="utf-8")):
                found[name].add(path.relative_to(ROOT).as_posix())
    assert found["numpy"], "no module imports numpy: the search looks in the wrong place"
    return found


def test_the_search_sees_every_form_of_import():
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g as h\nfrom . import i\n"
    assert imported_top_level_names(source) == {"a", "c", "g"}


def test_deepspeed_is_imported_in_one_file(importers):
    assert importers["deepspeed"] <= {"trainer/engine.py"}


def test_triton_is_imported_under_kernels_only(importers):
    assert all(path.startswith("model/kernels/") for path in importers["triton"])


@pytest.mark.parametrize("name", ["transformer_engine", "flash_attn", "flash_attn_interface", "flash_attn_cute"])
def test_gpu_library_is_imported_in_one_file_of_model(importers, name):
    assert len(importers[name]) <= 1
    assert all(path.startswith("model/") for path in importers[name])


def test_model_init_is_empty():
    """An empty model/__init__.py keeps the text half importable without torch."""
    source = (ROOT / "model/__init__.py").read_text(encoding="utf-8")
    assert not [node for node in ast.parse(source).body if not isinstance(node, ast.Expr)]
