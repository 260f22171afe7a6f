"""A user's DeepSpeed JSON: what may be set is passed on, everything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import InputError
from trainer.deepspeed_config import ACCEPTED, REFUSED, engine_config, read_user_config


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def whole(user: dict[str, Any], zero_stage: int = 0) -> dict[str, Any]:
    return engine_config(user, micro_batch_size=4, num_micro_batches=2, num_ranks=3, zero_stage=zero_stage)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_every_refused_key_is_named_with_its_reason(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {"wall_clock_breakdown": True, key: {}})
    with pytest.raises(InputError) as refusal:
        read_user_config(path)
    assert str(refusal.value) == f"{path}: {key}: may not be set; {REFUSED[key]}"
    assert key not in ACCEPTED


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"wall_clock_breakdwon": True}, r"wall_clock_breakdwon: unknown key \(did you mean wall_clock_breakdown\?\)"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: accepts 0 or 1, got 2"),
        ({"zero_optimization": {"stage": "1"}}, "zero_optimization.stage: accepts 0 or 1, got '1'"),
        ({"zero_optimization": {"offload_optimizer": {}}}, "zero_optimization.offload_optimizer: may not be set"),
        ({"zero_optimization": {"reduce_bucket_sise": 5}}, "did you mean reduce_bucket_size"),
        ({"zero_optimization": 1}, "zero_optimization: accepts a JSON object, got 1"),
        ([1], "accepts a JSON object, got list"),
        ("{", "not JSON"),
    ],
)
def test_what_else_is_refused(tmp_path: Path, content: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_user_config(written(tmp_path, content))


def test_a_missing_file() -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_user_config(Path("nowhere.json"))


def test_what_may_be_set_is_passed_on(tmp_path: Path) -> None:
    user = {"wall_clock_breakdown": True, "zero_optimization": {"stage": 1, "allgather_bucket_size": 1000}}
    config = whole(read_user_config(written(tmp_path, user)), zero_stage=1)
    assert config["wall_clock_breakdown"] is True
    assert config["zero_optimization"]["allgather_bucket_size"] == 1000
    assert config["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_what_deepspeed_must_not_decide(zero_stage: int) -> None:
    config = whole({}, zero_stage)
    assert config["train_batch_size"] == 24
    assert config["gradient_clipping"] == 0, "DeepSpeed's default clips at 1"
    assert config["zero_optimization"]["stage"] == zero_stage


def test_two_stages_at_once_are_refused() -> None:
    with pytest.raises(InputError, match=r"stage is 1, but training.zero_stage is 0"):
        whole({"zero_optimization": {"stage": 1}})
