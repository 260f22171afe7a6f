"""Every preset at reduced width, and a few variants: what must hold whatever the methods."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from launch.preset import load_all
from model.config import BOS_ID, ModelConfig
from model.network.adapters import SITES, AdapterSet
from model.network.gpt import GPT, load, to_arrays
from model.network.initialize import initialize
from tests.network.reduced import VARIANTS, perturbed_model, reduce_width

PRESETS = {preset.name: preset for preset in load_all()}
MODELS = {name: preset.settings.model for name, preset in PRESETS.items()}
LENGTHS = (7, 1, 10, 6)
TOTAL = sum(LENGTHS)
STARTS = [0, 7, 8, 18]
CU_SEQLENS = torch.tensor([*STARTS, TOTAL, TOTAL], dtype=torch.int32)


def distinct(models: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    """One preset of each network: entries that differ in training or evaluation alone share it."""
    result: dict[str, ModelConfig] = {}
    for name, config in models.items():
        reduced = reduce_width(config)
        if reduced not in result.values():
            result[name] = reduced
    return result


NETWORKS = {**distinct(MODELS), **VARIANTS}
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def models() -> dict[str, GPT]:
    return {name: perturbed_model(config).requires_grad_(False) for name, config in NETWORKS.items()}


def documents(seed: int = 0) -> Tensor:
    """One packed row [1, 24] of four documents that begin with BOS."""
    ids = torch.randint(2, 64, (1, TOTAL), generator=torch.Generator().manual_seed(seed))
    ids[0, STARTS] = BOS_ID
    return ids


def leaks(name: str) -> bool:
    """Rank 8's gate adds the last token of a document to the next one's BOS, as published."""
    return NETWORKS[name].smear.kind == "token" and not NETWORKS[name].smear.bos_mask


@every_network
def test_causality(name: str, models: dict[str, GPT]) -> None:
    """A changed token changes outputs from its position on, and no bit before."""
    ids = documents()
    before = models[name](ids)[0]
    for position in (5, 13):
        changed = ids.clone()
        changed[0, position] = 2 + (changed[0, position] + 7) % 60
        after = models[name](changed)[0]
        assert torch.equal(before[:position], after[:position])
        assert not torch.equal(before[position], after[position])


@every_network
def test_documents_are_apart(name: str, models: dict[str, GPT]) -> None:
    """In a packed row a changed token changes its own document from there on, and no bit of another."""
    ids = documents()
    before = models[name](ids, CU_SEQLENS)[0]
    for position in (6, 12):
        changed = ids.clone()
        changed[0, position] = 2 + (changed[0, position] + 7) % 60
        after = models[name](changed, CU_SEQLENS)[0]
        end = next(start for start in [*STARTS, TOTAL] if start > position)
        assert torch.equal(before[:position], after[:position])
        assert not torch.equal(before[position:end], after[position:end])
        assert torch.equal(before[end:], after[end:]) != (leaks(name) and position == end - 1)


@every_network
def test_packed_equals_unpacked(name: str, models: dict[str, GPT]) -> None:
    """The documents of a packed row get the numbers that each gets as a row of its own."""
    ids = documents()
    packed = models[name](ids, CU_SEQLENS)[0]
    for start, length in zip(STARTS, LENGTHS, strict=True):
        alone = models[name](ids[:, start : start + length])[0]
        close = torch.allclose(packed[start : start + length], alone, atol=2e-4)
        # After a lone BOS the leak doubles BOS's own embedding, and the norm takes that away.
        assert close != (leaks(name) and start in (7, 18))


@every_network
def test_plain_row_is_a_packed_row_of_one_document(name: str, models: dict[str, GPT]) -> None:
    ids = documents()
    whole = torch.tensor([0, TOTAL], dtype=torch.int32)
    torch.testing.assert_close(models[name](ids, whole), models[name](ids), atol=1e-4, rtol=1e-4)


@every_network
def test_forward_uses_every_parameter(name: str) -> None:
    """No parameter without a gradient, and no single number that does nothing (token rows that don't occur aside)."""
    model = perturbed_model(NETWORKS[name])
    ids = torch.arange(2, 64)[torch.randperm(62, generator=torch.Generator().manual_seed(0))].repeat(3)[None]
    ids[0, ::31] = BOS_ID
    model.token_nll(ids, ids.roll(-1, 1)).mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if not key.endswith(("embedding.weight", "table")):
            idle = (parameter.grad == 0).double().mean().item()
            assert idle <= 0.5, f"{key}: {idle:.0%} of the gradient is zero"
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].recurrence.num_extra_passes])
def test_parameters_that_wait_for_recurrence(name: str) -> None:
    """With recurrence off, exactly the rows and passes that it adds are idle."""
    config = NETWORKS[name]
    model = perturbed_model(config)
    model.set_extra_passes(0)
    ids = documents()
    model.token_nll(ids, ids.roll(-1, 1)).mean().backward()
    idle = {key for key, p in model.named_parameters() if p.grad is None}
    prefixes = ("untied_mlps.", "execution_scalars.11.", "execution_scalars.12.")
    assert all(key.startswith(prefixes) for key in idle)
    assert bool(idle) == config.recurrence.untied_mlp
    used = model.plans[0].num_skips
    assert (model.skip_weights.grad[:used] != 0).any(1).all()
    assert (model.skip_weights.grad[used:] == 0).all()


@every_network
def test_arrays_round_trip(name: str, models: dict[str, GPT]) -> None:
    again = load(NETWORKS[name], to_arrays(models[name]))
    assert torch.equal(again(documents()), models[name](documents()))


@every_network
def test_adapters_fit(name: str, models: dict[str, GPT]) -> None:
    """Fresh adapters change nothing; each site of each execution that has it moves the output."""
    config, model = NETWORKS[name], models[name]
    ids = documents()
    adapters = AdapterSet(config, 1, sites=SITES, rank=2, alpha=2, seed=0)
    assert len(adapters.executions) == len(model.plan.executions) == config.num_executions
    with torch.no_grad():
        assert torch.equal(model(ids, adapters=adapters), model(ids))
    model.token_nll(ids, ids.roll(-1, 1), adapters=adapters).mean().backward()
    for key, parameter in adapters.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()) == key.endswith(".b"), key


def starts_as_its_embedding(name: str) -> bool:
    """Whether nothing but depth, lanes, passes and side paths that start closed sets a network apart at the start."""
    config = NETWORKS[name]
    opens = config.embedding_dim or config.smear.kind == "channel" or config.hash_embedding.table_init_std
    return config.tied_head and not opens and config.initialization.residual_mix == "identity"


@pytest.mark.parametrize("name", filter(starts_as_its_embedding, NETWORKS))
def test_start(name: str) -> None:
    """Zero output matrices: every block starts as the identity, so depth, lanes and passes don't show. Smear and hash
    tables that start closed are transparent."""
    config = NETWORKS[name]
    model = GPT(config)
    initialize(model, 0)
    ids = documents()
    reference = ModelConfig(
        vocab_size=64,
        num_layers=1,
        model_dim=32,
        num_heads=4,
        num_kv_heads=2,
        unet_skips=False,
        logit_softcap=config.logit_softcap,
        softcap_form=config.softcap_form,
    )
    arrays = to_arrays(GPT(reference).to_empty(device="cpu"))
    plain = load(reference, {key: np.zeros_like(array) for key, array in arrays.items()})
    with torch.no_grad():
        plain.embedding.weight.copy_(model.embedding.weight)
        plain.blocks[0].residual_mix[0].fill_(1)
        # The stream is a multiple of the embedding: skips and lanes scale it, the last norm takes the scale away.
        torch.testing.assert_close(model(ids), plain(ids), atol=1e-4, rtol=1e-3)


@every_network
def test_passes_are_data(name: str, models: dict[str, GPT]) -> None:
    """Switching passes changes the function where there are any, and switching back restores it to the bit."""
    model, ids = copy.deepcopy(models[name]), documents()
    full = model.extra_passes
    before = model(ids)
    model.set_extra_passes(0)
    off = model(ids)
    model.set_extra_passes(full)
    assert torch.equal(model(ids), before)
    assert torch.equal(off, before) == (full == 0)
    with pytest.raises(ValueError, match="num_extra_passes"):
        model.set_extra_passes(full + 1)


def test_configuration_survives_plain_data() -> None:
    from launch.settings import differences
    from model.config import model_config_from_dict

    for config in MODELS.values():
        assert model_config_from_dict(differences(config)) == config
    with pytest.raises(ValueError, match=r"model: unknown field 'colour'"):
        model_config_from_dict({"colour": 1})
    with pytest.raises(ValueError, match=r"model\.smear: unknown field 'colour'"):
        model_config_from_dict({"smear": {"colour": 1}})
    with pytest.raises(ValueError, match=r"model\.num_layers: accepts a value of type int"):
        model_config_from_dict({"num_layers": "many"})
    assert replace(ModelConfig(), num_layers=2).num_executions == 2
