"""Evaluation settings are validated when built, and survive the way through an artifact's configuration."""

from __future__ import annotations

import dataclasses

import pytest

from eval.config import EvalConfig, TTTConfig, eval_config_from_dict, to_dict, with_overrides


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "best"),
        ("context_tokens", 0),
        ("context_tokens", 1.5),
        ("stride_tokens", 1025),
        ("stride_tokens", 0),
        ("batch_windows", True),
    ],
)
def test_wrong_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        dataclasses.replace(EvalConfig(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chunk_tokens", 0),
        ("window_tokens", 255),
        ("batch_documents", 0),
        ("rank", 0),
        ("alpha", 0.0),
        ("sites", ()),
        ("sites", ("q", "q")),
        ("sites", ("query",)),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("beta1", 1.0),
        ("epsilon", 0.0),
        ("weight_decay", -1.0),
        ("warm_start", 1),
        ("seed", -1),
    ],
)
def test_wrong_ttt_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf"^ttt\.{field} must be"):
        TTTConfig(**{field: value})


def test_settings_survive_plain_data():
    config = EvalConfig(mode="ttt", stride_tokens=16, ttt=TTTConfig(sites=("mlp",), learning_rate=0.5, warm_start=True))
    assert eval_config_from_dict(to_dict(config)) == config
    assert eval_config_from_dict({"ttt": {"learning_rate": 1}}).ttt.learning_rate == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contxt": 1}, "unknown eval setting contxt"),
        ({"ttt": {"lr": 1}}, "unknown eval setting ttt.lr"),
        ({"ttt": 3}, "ttt must be a table"),
        ({"ttt": {"sites": "q"}}, "ttt.sites must be a list"),
        ({"ttt": {"rank": "8"}}, "ttt.rank must be of type int"),
        ({"ttt": {"rank": True}}, "ttt.rank must be of type int"),
    ],
)
def test_wrong_plain_data_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        eval_config_from_dict(values)


def test_overrides_reach_nested_settings():
    overrides = {"stride-tokens": "32", "ttt.learning-rate": "0.5", "ttt.sites": "q,mlp", "ttt.warm-start": "true"}
    config = with_overrides(EvalConfig(), overrides)
    assert config.stride_tokens == 32
    assert (config.ttt.learning_rate, config.ttt.sites, config.ttt.warm_start) == (0.5, ("q", "mlp"), True)


@pytest.mark.parametrize(
    "overrides", [{"ttt": "1"}, {"strides": "1"}, {"ttt.rank": "x"}, {"mode.x": "1"}, {"ttt.warm_start": "1"}]
)
def test_wrong_overrides_name_the_setting(overrides):
    with pytest.raises(ValueError, match=next(iter(overrides))):
        with_overrides(EvalConfig(), overrides)
