"""The vectors on disk: what this reader, the one in JavaScript and the one in the standard library make of them."""

import ast
import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifact import reader
from artifact.errors import ArtifactError
from artifact.schema import Codec, Order
from tests.artifact import standard_library_reader
from tests.vectors import make_vectors

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = sorted((REPOSITORY / "tests/vectors/good").glob("*.albatross"))
BAD = sorted((REPOSITORY / "tests/vectors/bad").glob("*.albatross"))


def expected_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def test_vectors_are_those_of_the_generator() -> None:
    bad = make_vectors.bad_files()
    assert {path.stem for path in BAD} == set(bad)
    assert all(path.read_bytes() == bad[path.stem] for path in BAD)
    good = make_vectors.good_files()
    assert {path.stem for path in GOOD} == set(good)
    for path in GOOD:
        if expected_of(path)["zstd"] == make_vectors.zstd_version():
            assert path.read_bytes() == good[path.stem], f"{path.stem}: the writer gives other bytes than it did"


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good(path: Path) -> None:
    assert make_vectors.describe(path.read_bytes()) == expected_of(path)["tensors"]


@pytest.mark.parametrize(("name", "order"), [("uneven_columns", Order.ROWS), ("uneven_rows", Order.COLUMNS)])
def test_good_vectors_exercise_contexts_and_both_orders(name: str, order: Order) -> None:
    data = next(path for path in GOOD if path.stem == name).read_bytes()
    artifact = reader.parse(data)
    (group,) = artifact.manifest.groups
    assert group.parts[0].codec == Codec.RANS
    assert group.encoding.order == order
    num_contexts = bytes(artifact._streams[0])[0]
    assert num_contexts >= 3


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad(path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        reader.read(path).arrays()
    assert caught.value.code == path.stem.split("--")[0]


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_standard_library_reader(path: Path) -> None:
    expected = expected_of(path)["tensors"]
    tensors, skipped = standard_library_reader.read(path.read_bytes())
    assert set(skipped.values()) <= {"zstd"}
    assert set(tensors) | set(skipped) == set(expected)
    for name, (shape, weights) in tensors.items():
        digest = hashlib.sha256(struct.pack(f"<{len(weights)}f", *weights)).hexdigest()
        assert {"shape": list(shape), "sha256": digest} == expected[name]


def test_standard_library_reader_decodes_nearly_everything() -> None:
    decoded, skipped = 0, 0
    for path in GOOD:
        tensors, left_out = standard_library_reader.read(path.read_bytes())
        decoded, skipped = decoded + len(tensors), skipped + len(left_out)
    assert decoded > 40
    assert skipped < decoded


def test_standard_library_reader_is_small_and_alone() -> None:
    source = Path(standard_library_reader.__file__).read_text()
    assert len(source.splitlines()) <= 250
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names


@pytest.fixture(scope="module")
def javascript_reader() -> list[str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no Node.js here")
    folder = REPOSITORY / "readers/js"
    if not (folder / "node_modules").is_dir():
        installed = subprocess.run([npm, "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
        if installed.returncode != 0:
            pytest.skip(f"npm ci failed: {installed.stderr.strip().splitlines()[-1:]}")
    return [node, str(folder / "main.js")]


@pytest.mark.slow
def test_javascript_reader(javascript_reader: list[str], tmp_path: Path) -> None:
    large = {f"{code}--{name}": data for name, (data, code) in make_vectors.hostile_files().items()}
    paths = [*GOOD, *BAD]
    for name, data in large.items():
        if len(data) > make_vectors.MAX_VECTOR_BYTES:
            paths.append(tmp_path / f"{name}.albatross")
            paths[-1].write_bytes(data)
    output = subprocess.run([*javascript_reader, *map(str, paths)], check=True, capture_output=True, text=True).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["path"] for result in results] == [str(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if path in GOOD:
            assert result.get("tensors") == expected_of(path)["tensors"], path.stem
        else:
            assert result.get("error") == path.stem.split("--")[0], path.stem
