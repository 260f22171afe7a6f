"""What inspect and verify report."""

import json
from pathlib import Path

import pytest

from artifact import inspection, writer
from artifact.errors import ArtifactError
from artifact.ledger import Ledger, LedgerRow
from tests.artifact.contents import good_contents


@pytest.mark.parametrize("name", good_contents())
def test_groups_add_up_to_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    content = good_contents()[name]
    writer.write(path, content)
    report = json.loads(json.dumps(inspection.inspect(path, with_entropy=True)))
    assert report["total_bytes"] == path.stat().st_size
    assert sum(row["coded_bytes"] for row in report["ledger"]["rows"]) == report["total_bytes"]
    stored = [name for group in report["groups"] if group["role"] == "weight" for name in group["tensors"]]
    assert sorted(stored) == sorted(content.tensors)
    for group in report["groups"]:
        parts = group["parts"]
        assert sum(part["num_bytes"] - part["carried_bytes"] for part in parts) == group["coded_bytes"]
    verification = inspection.verify(path)
    assert verification.num_tensors == len(content.tensors)
    assert verification.total_bytes == report["total_bytes"]
    assert verification.sha256 == report["sha256"]


def test_entropy_bound_of_a_known_distribution(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    writer.write(path, good_contents()["large"])
    group = inspection.inspect(path, with_entropy=True)["groups"][0]
    symbols_bytes = group["parts"][0]["num_bytes"] - group["parts"][0]["carried_bytes"]
    assert 0.9 * group["entropy_bytes"] < symbols_bytes < 1.1 * group["entropy_bytes"]


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    writer.write(path, good_contents()["layers"])
    text = inspection.format_inspection(path, max_bytes=16_000_000)
    for expected in (
        "preset     tiny",
        "blocks.#.q.weight",
        "int6 per row",
        "configuration",
        "code",
        "container",
        "100.00%",
    ):
        assert expected in text
    group_line = next(line for line in text.splitlines() if line.startswith("blocks.#.q.weight"))
    entropy_bytes = inspection.inspect(path, with_entropy=True)["groups"][0]["entropy_bytes"]
    assert f"{entropy_bytes:,.0f}" in group_line.split()
    assert f"headroom {16_000_000 - path.stat().st_size:,} bytes" in text


def test_verify_refuses_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    writer.write(path, good_contents()["layers"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256"):
        inspection.verify(path)


def test_a_ledger_must_add_up() -> None:
    with pytest.raises(ValueError, match="add up"):
        Ledger((LedgerRow("a", 3), LedgerRow("b", 4)), 8)
