"""One rank of a small training run, for tests: `train_worker.py JSON`, with RANK and WORLD_SIZE in the environment.

JSON keys: data, run_dir, training (of TrainingConfig); optional: model (of ModelConfig, over the small one here),
resume (checkpoint folder), replay (metrics file), warm_up (true: rehearse every phase first, as on a GPU).
Rank 0 leaves run_dir/result.json and every rank run_dir/orthogonalized_RANK.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from eval.ledger import ByteLedger
from launch.settings import build
from model.config import ModelConfig
from model.text.shards import DataFolder
from trainer import optimizer as optimizer_module
from trainer import run as run_module
from trainer.clock import recorded_clock
from trainer.config import TrainingConfig
from trainer.ranks import join
from trainer.run import train

MODEL = {
    "vocab_size": 64,
    "num_layers": 3,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embedding_init_std": 0.05,
}


def _warmed_up(loop: Callable[[run_module._Run], None]) -> Callable[[run_module._Run], None]:
    def warm_up_and_loop(run: run_module._Run) -> None:
        run.warm_up()
        loop(run)

    return warm_up_and_loop


def main(job: dict[str, object]) -> None:
    torch.set_num_threads(1)
    ranks, run_dir = join(timeout_seconds=60), Path(str(job["run_dir"]))
    run_dir.mkdir(parents=True, exist_ok=True)
    data = DataFolder.open(Path(str(job["data"])))
    ledger = ByteLedger(data.val_token_bytes, proved=False, lossless=None)
    optimizers = []
    original = optimizer_module.TrainingOptimizer.__init__

    def remember(self: optimizer_module.TrainingOptimizer, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        optimizers.append(self)

    if job.get("warm_up"):
        run_module._Run._loop = _warmed_up(run_module._Run._loop)  # type: ignore[method-assign]

    optimizer_module.TrainingOptimizer.__init__ = remember  # type: ignore[method-assign,assignment]
    result = train(
        build(ModelConfig, {**MODEL, **job.get("model", {})}, "model"),  # type: ignore[dict-item]
        build(TrainingConfig, job["training"], "training"),  # type: ignore[arg-type]
        data,
        ledger,
        run_dir,
        ranks,
        resume=Path(str(job["resume"])) if "resume" in job else None,
        replay_clock=recorded_clock(Path(str(job["replay"]))) if "replay" in job else None,
    )
    counted = {
        "orthogonalized": sum(o.num_orthogonalized for o in optimizers),
        "steps": result.num_steps,
        "state_bytes": sum(t.numel() * t.element_size() for o in optimizers for t in o.state_tensors()),
    }
    (run_dir / f"orthogonalized_{ranks.rank}.json").write_text(json.dumps(counted))
    if ranks.is_first:
        (run_dir / "result.json").write_text(json.dumps({"steps": result.num_steps, "bpb": result.validation.bpb}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
