"""Whole runs on packed documents: the same curve whatever the number of ranks, and not that of plain windows."""

from pathlib import Path

import numpy as np

from tests.trainer.runs import TRAINING, rows, run

PACKED = {
    **TRAINING,
    "data_order": "packed",
    "packed_row_tokens": 128,
    "micro_batch_tokens": 128,
    "max_steps": 6,
    "checkpoint_every_steps": 0,
}


def test_packed_rows_on_one_and_two_ranks(data: Path, tmp_path: Path) -> None:
    one = rows(run({"data": str(data), "run_dir": str(tmp_path / "one"), "training": PACKED}))
    two = rows(run({"data": str(data), "run_dir": str(tmp_path / "two"), "training": PACKED}, num_ranks=2))
    np.testing.assert_allclose(list(two.values()), list(one.values()), atol=5e-3)
    np.testing.assert_allclose(two[1], one[1], atol=1e-6)
    assert one[6] < one[1]
    windows = {
        **TRAINING,
        "max_steps": 1,
        "sequence_tokens": 128,
        "micro_batch_tokens": 128,
        "checkpoint_every_steps": 0,
    }
    plain = rows(run({"data": str(data), "run_dir": str(tmp_path / "plain"), "training": windows}))
    # Same tokens (documents of 100, rows from the start of the stream), but attention sees across documents.
    assert abs(plain[1] - one[1]) > 1e-4
