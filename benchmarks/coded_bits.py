"""Bits per weight of trained matrices after quantization and coding, by step: the table of `albatross train --dry-run`.

    python -m benchmarks.coded_bits WEIGHTS.npz|RUN_DIR --json

Rows are quantized to 8 bits with steps of `relative_step` times their standard deviation and coded by the artifact's
own codecs; their symbols are counted, without scales. At a given relative step the number of bits of the alphabet does
not matter to an entropy coder, so that one curve for each role serves all settings.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from artifact.content import Content
from artifact.inspection import inspect
from artifact.writer import write
from trainer.export import quantize
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.tensor_plan import role_of

ROLES = ("attention", "mlp", "embedding")
# The smallest puts the end of the 8-bit range at 4 standard deviations; a finer one would clip.
RELATIVE_STEPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
MAX_WEIGHTS = 2_000_000


def measure(weights: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Role -> the clip at a row's maximum in standard deviations (median), and [relative step, bits per weight]."""
    table: dict[str, dict[str, object]] = {}
    for role in ROLES:
        chosen = sample({name: values for name, values in weights.items() if role_of(name) == role})
        reach = np.concatenate([np.abs(values).max(1) / values.std(1, ddof=1) for values in chosen.values()])
        curve = [[step, round(bits_per_weight(chosen, step), 4)] for step in RELATIVE_STEPS]
        table[role] = {"maximum_over_deviation": round(float(np.median(reach)), 3), "curve": curve}
    return table


def sample(matrices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most `MAX_WEIGHTS` weights: rows evenly over all matrices."""
    total = sum(values.size for values in matrices.values())
    every = max(1, -(-total // MAX_WEIGHTS))
    return {name: np.ascontiguousarray(values[::every]) for name, values in matrices.items()}


def bits_per_weight(matrices: dict[str, np.ndarray], relative_step: float) -> float:
    deviations = relative_step * 127
    settings = QuantizationConfig(
        matrix_bits=8,
        embedding_bits=8,
        clip_rule="deviations",
        clip_deviations=deviations,
        embedding_clip_deviations=deviations,
        small_tensor_max_elements=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        content = Content({}, "0" * 64, quantize(matrices, settings))
        path = Path(folder) / "sample.albatross"
        write(path, content)
        groups = inspect(path)["groups"]
    symbols = [part for group in groups for part in group["parts"] if part["name"] == "symbols"]
    return 8 * sum(part["num_bytes"] for part in symbols) / sum(part["num_symbols"] for part in symbols)


def load(path: Path) -> dict[str, np.ndarray]:
    if path.is_file():
        with np.load(path) as archive:
            return dict(archive)
    from trainer.checkpoint import load_weights

    return load_weights(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = measure(load(options.weights))
    if options.json:
        print(json.dumps(table))
        return 0
    print(f"{'role':<10} {'max/std':>8}  " + "".join(f"{step:>9.4f}" for step in RELATIVE_STEPS))
    for role, entry in table.items():
        bits = "".join(f"{value:>9.3f}" for _, value in entry["curve"])
        print(f"{role:<10} {entry['maximum_over_deviation']:>8}  {bits}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
