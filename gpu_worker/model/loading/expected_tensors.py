"""Names and shapes of the tensors that a config requires, as in NeMo's state dict."""

from __future__ import annotations

from gpu_worker.model.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Return the shapes of all tensors that inference reads, by name."""
    shapes: Shapes = {
        "preprocessor.featurizer.window": (config.mel.win_length,),
        "preprocessor.featurizer.fb": (1, config.mel.n_mels, config.mel.n_fft // 2 + 1),
    }
    shapes.update(_subsampling(config))
    for layer in range(config.num_layers):
        shapes.update(_layer(config, f"encoder.layers.{layer}"))
    shapes.update(_prompt(config))
    shapes.update(_predictor(config))
    shapes.update(_linear("joint.enc", config.joint_hidden, config.d_model, bias=True))
    shapes.update(_linear("joint.pred", config.joint_hidden, config.pred_hidden, bias=True))
    shapes.update(_linear("joint.joint_net.2", config.vocab_size + 1, config.joint_hidden, bias=True))
    return shapes


def _linear(name: str, num_out: int, num_in: int, *, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (num_out, num_in)}
    if bias:
        shapes[f"{name}.bias"] = (num_out,)
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _subsampling(config: ModelConfig) -> Shapes:
    """Return the shapes of `dw_striding`: a full convolution, then depthwise and pointwise ones."""
    channels = config.subsampling_channels
    shapes: Shapes = {}
    halvings = config.subsampling_factor.bit_length() - 1
    for halving in range(halvings):
        # Modules 0, 2, 5, ... are 3x3 convolutions, 3, 6, ... pointwise; the rest are ReLUs.
        index = 0 if halving == 0 else 3 * halving - 1
        shapes[f"encoder.pre_encode.conv.{index}.weight"] = (channels, 1, 3, 3)
        shapes[f"encoder.pre_encode.conv.{index}.bias"] = (channels,)
        if halving > 0:
            shapes[f"encoder.pre_encode.conv.{index + 1}.weight"] = (channels, channels, 1, 1)
            shapes[f"encoder.pre_encode.conv.{index + 1}.bias"] = (channels,)
    shapes.update(
        _linear("encoder.pre_encode.out", config.d_model, channels * config.subsampled_mels, bias=True)
    )
    return shapes


def _layer(config: ModelConfig, prefix: str) -> Shapes:
    d_model, bias = config.d_model, config.use_bias
    shapes: Shapes = {}
    for name in ("feed_forward1", "feed_forward2"):
        shapes.update(_norm(f"{prefix}.norm_{name}", d_model))
        shapes.update(_linear(f"{prefix}.{name}.linear1", config.ff_dim, d_model, bias=bias))
        shapes.update(_linear(f"{prefix}.{name}.linear2", d_model, config.ff_dim, bias=bias))
    shapes.update(_norm(f"{prefix}.norm_self_att", d_model))
    for name in ("q", "k", "v", "out"):
        shapes.update(_linear(f"{prefix}.self_attn.linear_{name}", d_model, d_model, bias=bias))
    shapes.update(_linear(f"{prefix}.self_attn.linear_pos", d_model, d_model, bias=False))
    # Every layer has these biases, even when all layers share one pair (untie_biases false).
    for name in ("pos_bias_u", "pos_bias_v"):
        shapes[f"{prefix}.self_attn.{name}"] = (config.num_heads, config.head_dim)
    shapes.update(_norm(f"{prefix}.norm_conv", d_model))
    convolutions = {
        "pointwise_conv1": (2 * d_model, d_model, 1),
        "depthwise_conv": (d_model, 1, config.conv_kernel),
        "pointwise_conv2": (d_model, d_model, 1),
    }
    for name, shape in convolutions.items():
        shapes[f"{prefix}.conv.{name}.weight"] = shape
        if bias:
            shapes[f"{prefix}.conv.{name}.bias"] = (shape[0],)
    # NeMo names every kind of norm batch_norm; here it is a layer norm.
    shapes.update(_norm(f"{prefix}.conv.batch_norm", d_model))
    shapes.update(_norm(f"{prefix}.norm_out", d_model))
    return shapes


def _prompt(config: ModelConfig) -> Shapes:
    if config.prompt is None:
        return {}
    d_model = config.d_model
    return {
        **_linear("prompt_kernel.0", 2 * d_model, d_model + config.prompt.num_prompts, bias=True),
        **_linear("prompt_kernel.2", d_model, 2 * d_model, bias=True),
    }


def _predictor(config: ModelConfig) -> Shapes:
    hidden = config.pred_hidden
    shapes: Shapes = {"decoder.prediction.embed.weight": (config.vocab_size + 1, hidden)}
    for layer in range(config.pred_layers):
        prefix = "decoder.prediction.dec_rnn.lstm"
        shapes[f"{prefix}.weight_ih_l{layer}"] = (4 * hidden, hidden)
        shapes[f"{prefix}.weight_hh_l{layer}"] = (4 * hidden, hidden)
        shapes[f"{prefix}.bias_ih_l{layer}"] = (4 * hidden,)
        shapes[f"{prefix}.bias_hh_l{layer}"] = (4 * hidden,)
    return shapes
