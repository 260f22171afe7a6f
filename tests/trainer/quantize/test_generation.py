"""Self-generated calibration: samples follow the model's probabilities, with and without kept keys and values."""

from __future__ import annotations

import torch

from model.config import ModelConfig, SmearConfig
from model.network.gpt import GPT
from trainer.quantize.calibrate import calibrate
from trainer.quantize.config import AllocationConfig, CalibrationConfig, QuantizationConfig
from trainer.quantize.generation import generate, generated_batches
from trainer.ranks import Ranks

SMALL = {"vocab_size": 24, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}
ALONE = Ranks(0, 1, torch.device("cpu"))


def make_model(**settings: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SMALL, **settings))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.eval()


def test_kept_keys_and_values_change_no_sample() -> None:
    model = make_model()
    samples = generate(model, 6, 20, 0.8, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(24, (6,), generator=generator)[:, None]
    with torch.no_grad():
        while ids.shape[1] < 20:
            probabilities = (model(ids)[:, -1] / 0.8).softmax(dim=-1)
            ids = torch.cat((ids, torch.multinomial(probabilities, 1, generator=generator)), dim=1)
    assert torch.equal(samples, ids)


def test_networks_that_cannot_decode_generate_too() -> None:
    samples = generate(make_model(smear=SmearConfig("mean")), 3, 8, 0.8, torch.Generator().manual_seed(1))
    assert samples.shape == (3, 8)
    assert len(samples.unique()) > 4


def test_low_temperature_takes_the_likeliest_token() -> None:
    model = make_model()
    samples = generate(model, 4, 10, 1e-4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(samples)[:, :-1].argmax(dim=-1), samples[:, 1:])


def test_rows_are_shared_out_and_repeatable() -> None:
    config = CalibrationConfig("generated", num_batches=5, batch_tokens=16, sequence_tokens=8)
    model, messages = make_model(), []
    shares = [
        torch.cat(list(generated_batches(model, config, Ranks(rank, 2, torch.device("cpu")), messages.append)))
        for rank in range(2)
    ]
    assert [share.shape for share in shares] == [(5, 8), (5, 8)]
    assert not torch.equal(shares[0], shares[1])
    again = torch.cat(list(generated_batches(model, config, Ranks(0, 2, torch.device("cpu")), messages.append)))
    assert torch.equal(again, shares[0])
    assert messages


def test_calibration_from_generated_text_needs_no_stream() -> None:
    source = CalibrationConfig("generated", num_batches=2, batch_tokens=64, sequence_tokens=16)
    config = QuantizationConfig(
        method="gptq", calibration=source, allocation=AllocationConfig(enabled=True, importance_tokens=32)
    )
    messages: list[str] = []
    calibration = calibrate(make_model(), config, None, ALONE, messages.append)
    assert calibration is not None
    assert calibration.num_tokens == 128
    assert calibration.importances is not None
    assert calibrate(make_model(), QuantizationConfig(), None, ALONE, messages.append) is None
    assert messages
