"""Comparing loss curves, and the golden ones."""

import json
from pathlib import Path

import pytest

from benchmarks import golden_curves
from model.errors import InputError
from trainer.curves import difference, format_differences, read_curve


def test_differences() -> None:
    first = {1: 4.0, 2: 3.0, 3: 2.0}
    assert difference(first, dict(first)).is_bit_equal
    found = difference(first, {1: 4.0, 2: 3.25, 3: 1.875, 4: 1.0})
    assert (found.num_steps, found.first_different_step, found.same_length) == (3, 2, False)
    assert (found.largest_nats, found.largest_at_step, found.last_nats) == (0.25, 2, -0.125)
    longer = difference(first, {**first, 4: 1.0})
    assert not longer.is_bit_equal
    assert longer.first_different_step is None
    with pytest.raises(InputError, match="no step in common"):
        difference(first, {7: 1.0})
    table = format_differences({"a": found, "b": longer})
    assert "0.25 nats" in table
    assert "3 (lengths differ)" in table


def test_reading_a_run(tmp_path: Path) -> None:
    rows = [{"step": 2, "train_loss": 3.5}, {"step": 1, "train_loss": 4.0}, {"step": 2, "val_bpb": 1}]
    record = tmp_path / "metrics.jsonl"
    record.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 2, "train_loss": 3.0}]))
    assert read_curve(tmp_path) == {1: 4.0, 2: 3.0}
    record.write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(InputError, match="no training loss"):
        read_curve(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_curve(tmp_path / "nowhere")


@pytest.mark.slow
def test_golden_curves() -> None:
    """Bit-equal under the recorded conditions, within 1e-3 elsewhere. After a change that is meant to change them:
    `python benchmarks/golden_curves.py record`."""
    golden = json.loads(golden_curves.GOLDEN.read_text())
    now = golden_curves.compute(list(golden_curves.CURVES))
    assert golden["curves"].keys() == now["curves"].keys()
    same_conditions = golden["conditions"] == now["conditions"]
    for name, curve in golden["curves"].items():
        got = now["curves"][name]
        if same_conditions:
            assert got == curve, name
        else:
            assert got["train_loss"] == pytest.approx(curve["train_loss"], abs=golden_curves.TOLERANCE_NATS), name
            assert got["val_bpb"] == pytest.approx(curve["val_bpb"], abs=golden_curves.TOLERANCE_NATS), name
