"""Which published methods a preset uses, read off its resolved settings; and the table of presets by methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.preset import Preset, Settings, load_all
from model.network.fake_quantization import FakeQuantization


@dataclass(frozen=True)
class Method:
    """A method by its usual name, the section of methods.md that describes it, and whether settings use it."""

    name: str
    section: str
    is_used: Callable[[Settings], bool]


def _qat(settings: Settings) -> list[FakeQuantization]:
    qat = settings.training.qat
    return [qat.attention, qat.mlp, qat.embedding, qat.sensitive]


def _mixes_five_and_six_bits(settings: Settings) -> bool:
    quantization = settings.quantization
    return quantization.mixed_precision.num_fine > 0 or quantization.mlp.bits == 5


def _embedding_is_float(settings: Settings) -> bool:
    return settings.quantization.embedding.method == "float"


METHODS: tuple[Method, ...] = (
    Method("grouped-query attention", "1.5", lambda s: s.model.num_kv_heads < s.model.num_heads),
    Method("QK-norm with gain", "1.5", lambda s: True),
    Method("partial RoPE", "1.5", lambda s: 0 < s.model.rope_dims < s.model.head_dim),
    Method("NTK RoPE", "1.5", lambda s: s.model.rope_scaling.kind == "ntk"),
    Method("YaRN", "2.8", lambda s: s.model.rope_scaling.kind == "yarn"),
    Method("sliding-window attention", "2.5", lambda s: s.model.attention_window > 0),
    Method("XSA", "1.6", lambda s: s.model.num_xsa_layers > 0),
    Method("value residual", "2.4", lambda s: s.model.value_residual),
    Method("value embeddings", "2.3", lambda s: bool(s.model.value_embedding.layers)),
    Method("sparse head gate", "1.7", lambda s: s.model.head_gate.kind == "sparse"),
    Method("dense head gate", "1.7", lambda s: s.model.head_gate.kind == "dense"),
    Method("attention output gate", "1.7", lambda s: s.model.head_gate.kind == "output"),
    Method("relu squared", "1.8", lambda s: s.model.activation == "relu_squared"),
    Method("leaky relu squared", "1.8", lambda s: s.model.activation == "leaky_relu_squared"),
    Method("SwiGLU", "1.8", lambda s: s.model.activation == "swiglu"),
    Method("tied embeddings", "1.12", lambda s: s.model.tied_head),
    Method("factored embedding", "2.7", lambda s: 0 < s.model.embedding_dim < s.model.model_dim),
    Method("SmearGate by token", "1.2", lambda s: s.model.smear.kind == "token"),
    Method("SmearGate by channel", "2.2", lambda s: s.model.smear.kind == "channel"),
    Method("SmearGate of the mean", "2.2", lambda s: s.model.smear.kind == "mean"),
    Method("BigramHash", "2.1", lambda s: s.model.hash_embedding.num_buckets > 0),
    Method("residual mix", "1.4", lambda s: True),
    Method("LN scale", "1.4", lambda s: s.model.ln_scale),
    Method("U-Net skips", "1.9", lambda s: s.model.unet_skips),
    Method("gated skips", "1.9", lambda s: s.model.unet_skips and s.model.skip_gates),
    Method("parallel residuals, one stream", "1.11", lambda s: s.model.lanes.kind == "single_stream"),
    Method("parallel residuals, two lanes", "1.11", lambda s: s.model.lanes.kind not in ("none", "single_stream")),
    Method("depth recurrence", "1.10", lambda s: s.model.recurrence.num_extra_passes > 0),
    Method("untied repeated MLPs", "1.10", lambda s: s.model.recurrence.untied_mlp),
    Method("progressive recurrence", "1.10", lambda s: len(set(s.training.recurrence_start_fractions)) > 1),
    Method("polynomial softcap", "2.7", lambda s: s.model.softcap_form == "polynomial"),
    Method("orthogonal init", "2.10", lambda s: s.model.initialization.matrices == "orthogonal"),
    Method("overtone init", "2.9", lambda s: s.model.initialization.embedding == "overtone"),
    Method("Muon", "3.2", lambda s: True),
    Method("MuonEq-R", "3.2", lambda s: s.training.matrix.row_normalize and s.training.matrix.num_iterations > 3),
    Method("NeoMuon", "3.5", lambda s: s.training.matrix.row_normalize and s.training.matrix.num_iterations <= 3),
    Method("Polar Express", "3.4", lambda s: s.training.matrix.orthogonalization == "polar_express"),
    Method("Muon weight decay", "3.2", lambda s: s.training.matrix.weight_decay > 0),
    Method("weight-decay taper", "3.9", lambda s: s.training.matrix.weight_decay_taper_start < 1),
    Method("EMA", "3.11", lambda s: bool(s.training.average_decay or s.training.average_horizon)),
    Method("SWA", "3.12", lambda s: s.training.swa_every_steps > 0),
    Method("QAT to integers", "4.1", lambda s: any(how.method == "round" for how in _qat(s))),
    Method("ternary weights", "4.6", lambda s: any(how.method == "ternary" for how in _qat(s))),
    Method("binary weights", "4.7", lambda s: any(how.method == "binary" for how in _qat(s))),
    Method("FP8 storage", "4.5", lambda s: any(how.method == "float8" for how in _qat(s))),
    Method("document packing", "7.4", lambda s: s.training.data_order == "packed"),
    Method("GPTQ", "5.3", lambda s: s.quantization.method == "gptq"),
    Method(
        "GPTQ of the embedding", "5.7", lambda s: (s.quantization.embedding.method or s.quantization.method) == "gptq"
    ),
    Method("self-generated calibration", "5.8", lambda s: s.quantization.calibration.source == "generated"),
    Method("SDClip", "5.4", lambda s: s.quantization.clip_rule == "deviations"),
    Method("Hessian-aware SDClip", "5.5", lambda s: s.quantization.hessian_clip_strength > 0),
    Method("clip search", "5.2", lambda s: s.quantization.attention.clip_rule == "search"),
    Method("LQER", "5.10", lambda s: s.quantization.low_rank.num_tensors > 0),
    Method("mixed int5 and int6", "4.3", _mixes_five_and_six_bits),
    Method("float16 embedding", "2.11", lambda s: _embedding_is_float(s) and not s.model.embedding_dim),
    Method(
        "pruning", "5.11", lambda s: s.quantization.pruning.selective or s.quantization.pruning.magnitude_fraction > 0
    ),
    Method("sliding-window evaluation", "8.2", lambda s: s.eval.mode == "sliding"),
    Method(
        "LoRA test-time training", "8.5", lambda s: s.eval.mode == "ttt" and s.eval.ttt.method in ("lora", "phased")
    ),
    Method("phased test-time training", "8.6", lambda s: s.eval.mode == "ttt" and s.eval.ttt.method == "phased"),
    Method("full test-time training", "8.4", lambda s: s.eval.mode == "ttt" and s.eval.ttt.method == "full"),
)


def methods_of(preset: Preset) -> list[str]:
    """The methods that a preset's settings use, and those that it names itself because no setting shows them."""
    return [method.name for method in METHODS if method.is_used(preset.settings)] + list(preset.methods)


def format_table(presets: Sequence[Preset]) -> str:
    """Methods by presets as a Markdown table: one row a method, one column a preset, named by rank where it has one."""
    named = sorted({name for preset in presets for name in preset.methods})
    used = {preset.name: set(methods_of(preset)) for preset in presets}
    headings = [str(preset.rank) if preset.rank is not None else preset.name for preset in presets]
    lines = ["| method | section | " + " | ".join(headings) + " |", "|" + "---|" * (len(presets) + 2)]
    rows = [(method.name, method.section) for method in METHODS] + [(name, "") for name in named]
    for name, section in rows:
        marks = ["x" if name in used[preset.name] else "" for preset in presets]
        if any(marks):
            lines.append(f"| {name} | {section} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


def format_page(presets: Sequence[Preset]) -> str:
    """The page docs/presets.md, which `python -m launch.methods` prints."""
    return (
        "# Methods by preset\n\n"
        "Written by `python -m launch.methods > docs/presets.md` from the resolved settings; a test compares.\n"
        "Columns are leaderboard ranks, then presets without one. Sections are those of the methods reference.\n\n"
        + format_table(presets)
    )


if __name__ == "__main__":
    print(format_page(load_all()), end="")
