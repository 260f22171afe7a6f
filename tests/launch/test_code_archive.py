"""The code archive: small, deterministic, and enough to evaluate an artifact in an empty folder."""

import ast
import functools
import json
import subprocess
import sys

import pytest

from launch import code_archive
from launch.cli import main


@pytest.fixture(scope="module")
def archive() -> bytes:
    return code_archive.build()


def test_is_the_same_every_time(archive):
    assert code_archive.build() == archive


def test_holds_what_evaluation_imports_and_nothing_else(archive):
    files = code_archive.unpack(archive)
    assert {"eval/__main__.py", "artifact/reader.py", "model/network/gpt.py", "model/text/shards.py"} <= files.keys()
    assert not [path for path in files if path.startswith(("launch/", "trainer/", "model/optimizers/"))]
    assert "artifact/writer.py" not in files


def test_stripping_keeps_every_statement_but_docstrings():
    source = '''"""Doc."""
# comment
X: int = 1

def f(a: int, *, b: str = "c") -> str:
    """Doc."""
    return b * a

class C:
    """Doc."""
    field: int = 2
    """Doc of the field."""

def g():
    """Doc only."""

@functools.cache
def h(a: int) -> int:
    return a
'''
    stripped = code_archive.strip(source)
    assert "Doc" not in stripped
    assert "comment" not in stripped
    assert "field: int = 2" in stripped
    assert "def f(a, *, b='c'):" in stripped
    assert "def h(a: int) -> int:" in stripped  # a decorator may read the annotations
    namespace: dict[str, object] = {"functools": functools}
    exec(compile(ast.parse(stripped), "stripped", "exec"), namespace)
    assert namespace["f"](2) == "cc"
    assert namespace["g"]() is None


@pytest.mark.parametrize("path", ["../evil.py", "/evil.py", "eval/../../evil.py"])
def test_a_path_out_of_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="leads out"):
        code_archive.unpack(code_archive.pack({path: "x = 1\n"}))


def test_bytes_that_are_no_archive_are_refused(archive):
    for damaged in (b"", b"nonsense", archive[:100], archive[:-10]):
        with pytest.raises(ValueError, match="not a code archive"):
            code_archive.unpack(damaged)


def test_runs_alone_in_an_empty_folder_and_gives_the_same_bpb(archive, run, data, tmp_path):
    assert main(["pack", str(run)]) == 0
    artifact = run / "artifact.albatross"
    assert main(["evaluate", str(artifact), "--data", str(data), "--report", str(tmp_path / "ours.json")]) == 0
    folder = tmp_path / "alone"
    for path, source in code_archive.unpack(archive).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source, encoding="utf-8")
    report = tmp_path / "theirs.json"
    # -P -I would drop the folder itself; a list of loaded modules shows that all of ours came from it.
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from eval.command import main\n"
        "code = main(sys.argv[2:])\n"
        "packages = ('artifact', 'eval', 'launch', 'model', 'trainer')\n"
        "ours = [m for n, m in sys.modules.items() if n.split('.')[0] in packages]\n"
        "assert ours and all(m.__file__.startswith(sys.argv[1]) for m in ours)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-I", "-c", script, folder, artifact, "--data", data, "--report", report]
    subprocess.run([str(word) for word in command], check=True, cwd=tmp_path)
    bpb = [json.loads(path.read_text())["post_quantization"]["bpb"] for path in (tmp_path / "ours.json", report)]
    assert bpb[0] == bpb[1]
