"""Rules of the house that import-linter cannot express: optional packages that may stand in one file only."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("artifact", "eval", "launch", "model", "trainer")


LOADED_BY_NAME = {"triton", "transformer_engine", "flash_attn", "flash_attn_interface"}


def imported_top_level_names(source: str) -> set[str]:
    """By statements; GPU libraries also by strings that look like their modules (importlib.import_module)."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            dotted = node.value.replace(".", "").isidentifier() and "." in node.value
            if dotted or node.value == "flash_attn_interface":
                names.update({node.value.split(".")[0]} & LOADED_BY_NAME)
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
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g as h\nfrom . import i\nload('flash_attn.cute')\n"
    assert imported_top_level_names(source) == {"a", "c", "g", "flash_attn"}


def test_deepspeed_is_imported_in_one_file(importers):
    assert "trainer/engine.py" in importers["deepspeed"]
    assert importers["deepspeed"] <= {"trainer/engine.py"}


def test_triton_is_imported_under_kernels_only(importers):
    assert all(path.startswith("model/kernels/") for path in importers["triton"])


def test_flash_attn_is_imported_in_one_file(importers):
    assert importers["flash_attn"] == importers["flash_attn_interface"] == {"model/kernels/attention.py"}


def test_transformer_engine_is_imported_in_at_most_one_file_of_model(importers):
    assert len(importers["transformer_engine"]) <= 1
    assert all(path.startswith("model/") for path in importers["transformer_engine"])


def test_model_init_is_empty():
    """An empty model/__init__.py keeps the text half importable without torch."""
    source = (ROOT / "model/__init__.py").read_text(encoding="utf-8")
    assert not [node for node in ast.parse(source).body if not isinstance(node, ast.Expr)]
