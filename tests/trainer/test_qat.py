"""The QAT switch: which weights it reaches, and that compiled graphs really change with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig, RecurrenceConfig
from model.errors import InputError
from model.network.fake_quantization import FakeQuantization, fake_quantize
from model.network.gpt import GPT
from model.network.initialize import initialize
from trainer.config import QATConfig, TrainingConfig
from trainer.phases import Phase, Phases
from trainer.qat import QuantizationAware, mix_by_sensitivity

INT6 = FakeQuantization("round")
TERNARY = FakeQuantization("ternary", group_size=16)
IDS = torch.arange(2 * 16).view(2, 16) % 64


def new_model(**changes: Any) -> GPT:
    config = ModelConfig(vocab_size=64, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, **changes)
    model = GPT(config)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():  # projections that start at zero would hide their quantization
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    return model


def counting_backend(graphs: list[str]) -> Callable[..., Any]:
    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module.code)
        return module.forward

    return backend


class Loss(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.token_nll(ids, ids).mean()


def test_late_qat_changes_the_compiled_graph() -> None:
    """The published switch was folded into the graph at its first trace and never did anything (methods 4.2)."""
    model = new_model()
    qat = QuantizationAware(model, QATConfig(attention=INT6, mlp=TERNARY))
    loss, graphs = Loss(model), list[str]()
    torch.compiler.reset()
    loss.compile(backend=counting_backend(graphs), dynamic=False)
    before = loss(IDS)
    assert len(graphs) == 1
    assert "round" not in graphs[0]
    qat.switch(True)
    after = loss(IDS)
    assert len(graphs) == 2
    assert graphs[1].count("torch.round(") == 2 * 6, "every matrix of both blocks rounds"
    assert abs((after - before).item()) > 1e-3
    torch.testing.assert_close(after, Loss(model)(IDS))
    qat.switch(False)
    torch.testing.assert_close(loss(IDS), before)
    qat.switch(True)
    loss(IDS)
    assert len(graphs) == 2, "both graphs were there already: nothing compiles at the switch of a warmed-up run"


def test_sharpness_and_recurrence() -> None:
    """Soft rounding's α moves within one graph; each number of passes has its own."""
    model = new_model(recurrence=RecurrenceConfig(first_layer=0, last_layer=0, num_extra_passes=1))
    config = TrainingConfig(qat=QATConfig(mlp=FakeQuantization("soft_round")), recurrence_start_fractions=(0.5,))
    phases = Phases(model, config)
    assert phases.reachable() == [Phase(0, True), Phase(1, True)]
    loss, graphs = Loss(model), list[str]()
    torch.compiler.reset()
    loss.compile(backend=counting_backend(graphs), dynamic=False)
    losses = []
    for step, fraction in ((0, 0.0), (250, 0.2), (500, 0.4)):
        phases.advance(step, fraction, 1.0)
        losses.append(loss(IDS).item())
    assert len(graphs) == 1
    assert len(set(losses)) == 3
    assert float(phases.qat.sharpness) == 16
    assert phases.advance(501, 0.5, 1.0) is not None
    loss(IDS)
    assert len(graphs) == 2
    for phase in phases.reachable():
        phases.rehearse(phase)
        loss(IDS)
    assert len(graphs) == 2
    phases.end_rehearsal()
    assert model.extra_passes == 1


def test_each_role_sees_its_own_quantization() -> None:
    model = new_model()
    config = QATConfig(
        attention=FakeQuantization("round"),
        mlp=FakeQuantization("round", -16, 15, 15),
        embedding=FakeQuantization("float8"),
        sensitive=FakeQuantization("round", -127, 127, 127),
        sensitive_matrices=("blocks.1.mlp.up",),
    )
    QuantizationAware(model, config).switch(True)
    expected = {
        "blocks.0.attention.q": config.attention,
        "blocks.1.attention.output": config.attention,
        "blocks.0.mlp.up": config.mlp,
        "blocks.1.mlp.down": config.mlp,
        "blocks.1.mlp.up": config.sensitive,
        "embedding": config.embedding,
    }
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if getattr(module, "transform", None) is not None]
    assert len(names) == 2 * 6 + 1
    for name, how in expected.items():
        if name not in modules:
            name = name.replace("output", "out")
        module: Any = modules[name]
        seen = module.transform(module.weight)
        assert torch.equal(seen, fake_quantize(module.weight, how, None, True)), name
        assert not torch.equal(seen, module.weight), name


def test_noise_and_soft_rounding_leave_evaluation_alone() -> None:
    model = new_model()
    plain = model(IDS)
    QuantizationAware(model, QATConfig(attention=FakeQuantization("noise"), mlp=FakeQuantization("soft_round"))).switch(
        True
    )
    assert not torch.equal(model(IDS), plain)
    model.eval()
    assert torch.equal(model(IDS), plain)


def test_late_start_is_for_good() -> None:
    model = new_model()
    config = TrainingConfig(qat=QATConfig(attention=INT6, start_below_learning_rate=0.15))
    phases = Phases(model, config)
    assert phases.reachable() == [Phase(0, False), Phase(0, True)]
    assert phases.advance(0, 0.0, 1.0) is None
    assert phases.advance(1, 0.5, 0.15) is None
    assert "fake-quantized" in str(phases.advance(2, 0.9, 0.14))
    assert phases.advance(3, 0.9, 0.2) is None
    assert phases.counters() == {"num_extra_passes": 0, "quantizes": True, "qat_start_step": 2}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (QATConfig(sensitive=INT6, sensitive_matrices=("blocks.9.mlp.up",)), "blocks.9.mlp.up is no matrix"),
        (QATConfig(mlp=FakeQuantization("ternary", group_size=48)), "groups of 48 do not divide"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(config: QATConfig, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Phases(new_model(), TrainingConfig(qat=config))


def test_recurrence_starts_must_fit_its_passes() -> None:
    model = new_model(recurrence=RecurrenceConfig(first_layer=0, last_layer=0, num_extra_passes=3))
    with pytest.raises(InputError, match="num_extra_passes=3 of them, got 2"):
        Phases(model, TrainingConfig(recurrence_start_fractions=(0.5, 0.6)))
    progressive = Phases(model, TrainingConfig(recurrence_start_steps=(1, 2, 9)))
    passes = []
    for step in range(10):
        progressive.advance(step, 0.0, 1.0)
        passes.append(model.extra_passes)
    assert passes == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3]


def test_mix_by_sensitivity() -> None:
    traces = {"a": 1.0, "b": 9.0, "c": 4.0, "d": 9.0}
    assert mix_by_sensitivity(traces, 2) == ("b", "d")
    assert mix_by_sensitivity(traces, 2, always=["a"]) == ("a", "b")
    assert mix_by_sensitivity(traces, 4) == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="e has no sensitivity"):
        mix_by_sensitivity(traces, 2, always=["e"])
    with pytest.raises(ValueError, match="at least the 3"):
        mix_by_sensitivity(traces, 2, always=["a", "b", "c"])
