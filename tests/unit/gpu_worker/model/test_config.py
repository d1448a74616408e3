"""Reading NeMo's model_config.yaml: what is kept, and what is refused with which words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.model.config import load_yaml, parse_model_config, read_model_config
from gpu_worker.model.errors import ModelConfigError
from gpu_worker.model.loading.checkpoint import BUNDLED

TINY = BUNDLED / "tiny" / "model_config.yaml"


@pytest.fixture(scope="module")
def tiny_values() -> dict[str, Any]:
    return dict(load_yaml(TINY.read_text(encoding="utf-8"), "tiny"))


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(values)
    section = result
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    return result


def test_tiny_is_read_as_its_card_says() -> None:
    config = read_model_config(TINY)
    assert (config.num_layers, config.d_model, config.num_heads, config.ff_dim) == (12, 192, 4, 768)
    assert (config.conv_kernel, config.subsampling_channels, config.subsampling_factor) == (9, 128, 8)
    assert (config.pred_layers, config.pred_hidden, config.joint_hidden) == (1, 256, 256)
    assert (config.vocab_size, config.blank_id, config.eou_id, config.eob_id) == (513, 513, 512, None)
    assert (config.mel.n_mels, config.mel.n_fft, config.mel.win_length, config.mel.hop_length) == (
        128,
        512,
        400,
        160,
    )
    assert not config.use_bias
    assert not config.xscaling
    assert config.untie_biases
    assert config.max_symbols == 10


def test_chunk_lengths_follow_from_the_contexts() -> None:
    config = read_model_config(TINY)
    assert config.frame_ms == 80
    assert config.chunk_sizes_ms == (80, 160, 560, 1120)
    assert config.context_for_chunk(None) == (70, 1)
    assert [config.context_for_chunk(ms) for ms in config.chunk_sizes_ms] == [
        (70, 0),
        (70, 1),
        (70, 6),
        (70, 13),
    ]


def test_a_chunk_length_that_was_not_trained_lists_those_that_were() -> None:
    with pytest.raises(ModelConfigError, match=r"--chunk-ms is 320.*80, 160, 560, 1120 ms only"):
        read_model_config(TINY).context_for_chunk(320)


def test_without_our_section_the_first_context_is_the_default(tiny_values: dict[str, Any]) -> None:
    values = {key: value for key, value in tiny_values.items() if key != "parakeet"}
    assert parse_model_config(values).default_context == (70, 13)


def test_one_context_may_stand_without_a_list_around_it(tiny_values: dict[str, Any]) -> None:
    values = {key: value for key, value in tiny_values.items() if key != "parakeet"}
    config = parse_model_config(changed(values, "encoder.att_context_size", [70, 1]))
    assert config.att_contexts == ((70, 1),)
    assert config.chunk_sizes_ms == (160,)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("target", "nemo.models.EncDecCTCModelBPE", "EncDecCTCModelBPE.*are EncDecRNNTBPEModel"),
        ("sample_rate", 8000, "'sample_rate' = 8000.*supported: 16000"),
        ("preprocessor.normalize", "per_feature", "'preprocessor.normalize' = 'per_feature'.*supported: NA"),
        ("preprocessor.window_stride", 0.02, "'preprocessor.window_stride'.*supported: 0.01"),
        ("preprocessor.log", False, "'preprocessor.log' = False.*supported: True"),
        ("preprocessor.features", True, "'preprocessor.features' = True.*an integer"),
        ("encoder.subsampling", "striding", "'encoder.subsampling' = 'striding'.*supported: dw_striding"),
        ("encoder.subsampling_factor", 4, "'encoder.subsampling_factor' = 4.*supported: 8"),
        ("encoder.causal_downsampling", False, "'encoder.causal_downsampling' = False"),
        ("encoder.self_attention_model", "abs_pos", "abs_pos.*supported: rel_pos"),
        ("encoder.att_context_style", "regular", "'regular'.*supported: chunked_limited"),
        ("encoder.att_context_size", [-1, -1], "att_context_size.*left a multiple of right"),
        ("encoder.att_context_size", [[70, 3]], "att_context_size.*left a multiple of right"),
        ("encoder.conv_norm_type", "batch_norm", "'batch_norm'.*supported: layer_norm"),
        ("encoder.conv_context_size", None, "'encoder.conv_context_size' = None.*causal"),
        ("encoder.n_heads", 5, "'encoder.n_heads' = 5.*divisor of d_model 192"),
        ("encoder.n_layers", "12", "'encoder.n_layers' = '12'.*an integer"),
        ("encoder.rotary_fraction", 0.5, "unknown setting 'encoder.rotary_fraction' = 0.5"),
        ("decoder._target_", "nemo.StatelessTransducerDecoder", "supported: RNNTDecoder"),
        ("decoder.normalization_mode", "layer", "'decoder.normalization_mode' = 'layer'.*supported: null"),
        ("decoder.prednet.pred_hidden", 0, "'decoder.prednet.pred_hidden' = 0.*at least 1"),
        ("joint.num_extra_outputs", 5, "'joint.num_extra_outputs' = 5.*supported: 0"),
        ("joint.jointnet.activation", "tanh", "'joint.jointnet.activation' = 'tanh'.*supported: relu"),
        ("joint.num_classes", 512, "'joint.num_classes' = 512.*supported: 513"),
        ("joint.vocabulary", ["a", "b"], "'joint.vocabulary'.*vocab_size = 513"),
        ("decoding.greedy.max_symbols", 0, "'decoding.greedy.max_symbols' = 0.*at least 1"),
        ("parakeet.default_att_context_size", [70, 3], "default_att_context_size.*one of"),
    ],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused(
    tiny_values: dict[str, Any], path: str, value: object, sentence: str
) -> None:
    with pytest.raises(ModelConfigError, match=sentence):
        parse_model_config(changed(tiny_values, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("encoder.dropout", 0.3),
        ("encoder.sync_max_audio_length", True),
        ("encoder.some_switch_of_a_newer_release", False),
        ("encoder.some_size_of_a_newer_release", None),
        ("preprocessor.dither", "1e-5"),
        ("preprocessor.pad_to", 16),
        ("joint.fuse_loss_wer", True),
        ("decoding.strategy", "greedy_batch"),
    ],
)
def test_what_inference_does_not_read_changes_nothing(
    tiny_values: dict[str, Any], path: str, value: object
) -> None:
    assert parse_model_config(changed(tiny_values, path, value)) == parse_model_config(tiny_values)


@pytest.mark.parametrize("missing", ["encoder", "joint", "decoder", "preprocessor"])
def test_a_missing_section_is_named(tiny_values: dict[str, Any], missing: str) -> None:
    values = {key: value for key, value in tiny_values.items() if key != missing}
    with pytest.raises(ModelConfigError, match=f"lacks '{missing}'"):
        parse_model_config(values)


@pytest.mark.parametrize(("text", "sentence"), [("a: [1", "not valid YAML"), ("- 1", "holds list")])
def test_a_file_that_is_no_config(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "model_config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelConfigError, match=sentence):
        read_model_config(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="cannot be read"):
        read_model_config(tmp_path / "none.yaml")


def prompted(values: dict[str, Any], languages: object) -> dict[str, Any]:
    values = changed(values, "target", "nemo.collections.asr.models.EncDecRNNTBPEModelWithPrompt")
    values["num_prompts"] = 128
    values["model_defaults"] |= {"initialize_prompt_feature": True, "prompt_dictionary": languages}
    return values


def test_languages_of_a_prompted_model(tiny_values: dict[str, Any]) -> None:
    prompt = parse_model_config(prompted(tiny_values, {"en-US": 0, "de-DE": 9, "auto": 101})).prompt
    assert prompt is not None
    assert (prompt.num_prompts, prompt.default_language, prompt.index("de-DE")) == (128, "auto", 9)
    with pytest.raises(ModelConfigError, match="no language prompt 'tlh'; it has auto, de-DE, en-US"):
        prompt.index("tlh")


def test_an_index_past_the_prompts_is_refused(tiny_values: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError, match="index below 128"):
        parse_model_config(prompted(tiny_values, {"en-US": 128}))
