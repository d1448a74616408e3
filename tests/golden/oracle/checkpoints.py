"""Make `.nemo` files with NeMo itself.  Runs in NeMo's environment."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import (
    EncDecHybridRNNTCTCBPEModel,
    EncDecRNNTBPEModel,
    EncDecRNNTBPEModelWithPrompt,
)
from numpy.typing import NDArray
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file
from torch import nn

from tests.golden.clips import medleys, single_clips
from tests.golden.oracle.decoding import greedy
from tests.golden.oracle.recipes import Recipe
from tests.golden.oracle.vocabulary import TINY_TOKENIZER, make_tokenizer

TOKENS_PER_FRAME = 0.4  # 5 a second: unevenly spread, as the predictor is random too
MARK_SHARE = 0.08
MODULES = "nemo.collections.asr.modules"


def make_checkpoint(recipe: Recipe, path: Path) -> None:
    """Build the recipe's model and save it as a `.nemo` file."""
    torch.manual_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = build(recipe, Path(folder))
        model.eval()
        if recipe.trained:
            load_trained(model)
        else:
            randomize(model, recipe)
        model.save_to(str(path))


def build(recipe: Recipe, folder: Path) -> Any:
    """NeMo's model with the recipe's dimensions and NeMo's own initial weights."""
    tokenizer = _tokenizer_folder(recipe, folder)
    config = OmegaConf.create(_config(recipe, tokenizer))
    if recipe.languages:
        model_class: Any = EncDecRNNTBPEModelWithPrompt
    elif recipe.hybrid:
        model_class = EncDecHybridRNNTCTCBPEModel
    else:
        model_class = EncDecRNNTBPEModel
    model = model_class(cfg=config)
    with open_dict(model.cfg):
        for part in ("train_ds", "validation_ds", "test_ds"):
            model.cfg[part] = None
    return model


def _tokenizer_folder(recipe: Recipe, folder: Path) -> Path:
    target = folder / "tokenizer"
    target.mkdir()
    if recipe.trained:
        shutil.copy(TINY_TOKENIZER, target / "tokenizer.model")
    else:
        data = make_tokenizer(recipe.pieces, recipe.marks, punctuation=recipe.punctuation)
        (target / "tokenizer.model").write_bytes(data)
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    names = [pieces.id_to_piece(index) for index in range(pieces.vocab_size())]
    (target / "tokenizer.vocab").write_text("".join(f"{name}\t0\n" for name in names), encoding="utf-8")
    (target / "vocab.txt").write_text("".join(f"{name}\n" for name in names[1:]), encoding="utf-8")
    return target


def _config(recipe: Recipe, tokenizer: Path) -> dict[str, Any]:
    hidden = recipe.hidden
    config: dict[str, Any] = {
        "sample_rate": 16000,
        "compute_eval_loss": False,
        "log_prediction": False,
        "skip_nan_grad": False,
        "model_defaults": {"enc_hidden": recipe.d_model, "pred_hidden": hidden, "joint_hidden": hidden},
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", **recipe.preprocessor()},
        "encoder": {"_target_": f"{MODULES}.ConformerEncoder", **recipe.encoder()},
        "decoder": {
            "_target_": f"{MODULES}.RNNTDecoder", "normalization_mode": None,
            "random_state_sampling": False, "blank_as_pad": True,
            "prednet": {
                "pred_hidden": hidden, "pred_rnn_layers": recipe.pred_layers, "t_max": None, "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": f"{MODULES}.RNNTJoint", "log_softmax": None, "preserve_memory": False,
            "fuse_loss_wer": False, "fused_batch_size": None,
            "jointnet": {
                "joint_hidden": hidden, "activation": "relu", "dropout": 0.2,
                "encoder_hidden": recipe.d_model, "pred_hidden": hidden,
            },
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
        "optim": {"name": "adamw", "lr": 1e-3},
    }  # fmt: skip
    if recipe.hybrid:
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": {
                "_target_": f"{MODULES}.ConvASRDecoder", "feat_in": recipe.d_model, "num_classes": -1,
                "vocabulary": [],
            },
            "decoding": {"strategy": "greedy"},
        }  # fmt: skip
    if recipe.languages:
        config["num_prompts"] = recipe.num_prompts
        config["model_defaults"] |= {
            "initialize_prompt_feature": True,
            "num_prompts": recipe.num_prompts,
            "prompt_dictionary": dict(recipe.languages),
        }
    return config


def load_trained(model: Any) -> None:
    """Put the bundled weights into NeMo's model."""
    weights = load_file(TINY_TOKENIZER.with_name("tiny.safetensors"))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)


@torch.no_grad()
def randomize(model: Any, recipe: Recipe) -> None:
    """Random weights whose outputs follow the audio, and a blank rate like that of speech."""
    clips = list(single_clips())
    width = max(len(clip.samples) for clip in clips)
    audio = torch.zeros(len(clips), width)
    for row, clip in enumerate(clips):
        audio[row, : len(clip.samples)] = torch.from_numpy(clip.samples)
    lengths = torch.tensor([len(clip.samples) for clip in clips])
    mel, mel_lengths = model.preprocessor(input_signal=audio, length=lengths)
    _center_front_end(model.encoder.pre_encode, mel, mel_lengths)
    for name, parameter in model.encoder.named_parameters():
        if "pos_bias" in name:
            parameter.normal_(0, 0.3)
        elif "norm" in name and parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif recipe.use_bias and name.endswith("bias") and "layers." in name:
            parameter.normal_(0, 0.1)
    encoded, encoded_lengths = model.encoder(audio_signal=mel, length=mel_lengths)
    if recipe.languages:
        model.set_inference_prompt("auto")
        encoded = model._apply_prompt_to_encoded(encoded)
    encoded = encoded.transpose(1, 2)
    valid = torch.cat([encoded[row, :count] for row, count in enumerate(encoded_lengths)])
    _center_joint(model, valid)
    _set_rates(model, [_encode(model, clip.samples, recipe) for clip in (*clips[-2:], *medleys(3))], recipe)


def _encode(model: Any, samples: NDArray[np.float32], recipe: Recipe) -> torch.Tensor:
    mel, length = model.preprocessor(
        input_signal=torch.from_numpy(samples)[None], length=torch.tensor([len(samples)])
    )
    encoded, _ = model.encoder(audio_signal=mel, length=length)
    if recipe.languages:
        encoded = model._apply_prompt_to_encoded(encoded)
    frames_TD: torch.Tensor = encoded[0].transpose(0, 1)
    return frames_TD


def _center_front_end(pre_encode: Any, mel: torch.Tensor, lengths: torch.Tensor) -> None:
    """Give every channel before a ReLU, and every output feature, mean 0 and deviation 1.

    Log-mel without normalization sits near -9: with NeMo's initial weights a constant would drown the
    audio after the first layer norm.
    """
    modules = list(pre_encode.conv)
    signal = mel.transpose(1, 2)
    for index, module in enumerate(modules):
        followed = index + 1 < len(modules) and isinstance(modules[index + 1], nn.ReLU)
        if not (isinstance(module, nn.Conv2d) and module.bias is not None and followed):
            continue
        outputs: list[torch.Tensor] = []
        handle = module.register_forward_hook(
            lambda _module, _inputs, output, kept=outputs: kept.append(output)
        )
        pre_encode(signal, lengths)
        handle.remove()
        inner = outputs[0][:, :, 2:-2, 2:-2] if min(outputs[0].shape[2:]) > 6 else outputs[0]
        mean, deviation = inner.mean((0, 2, 3)), inner.std((0, 2, 3)).clamp(min=1e-4)
        module.weight.div_(deviation[:, None, None, None])
        module.bias.copy_((module.bias - mean) / deviation)
    frames, counts = pre_encode(signal, lengths)
    valid = torch.cat([frames[row, : int(count)] for row, count in enumerate(counts)])
    deviation = valid.std(0).clamp(min=1e-4)
    pre_encode.out.weight.div_(deviation[:, None])
    pre_encode.out.bias.copy_((pre_encode.out.bias - valid.mean(0)) / deviation)


def _center_joint(model: Any, encoded_ND: torch.Tensor) -> None:
    for name, parameter in model.decoder.named_parameters():
        parameter.normal_(0, 1.0 if "embed" in name else 1.5 / np.sqrt(parameter.shape[-1]))
    # Training leaves the padding row at zero; NeMo's decoders rely on it, as they start from the blank or
    # from zeros as they please.
    model.decoder.prediction["embed"].weight[model.decoder.blank_idx] = 0.0
    tokens = torch.randint(0, model.decoder.blank_idx, (4, 64))
    predicted, _, _ = model.decoder(targets=tokens, target_length=torch.full((4,), 64))
    predicted_ND = predicted.transpose(1, 2).reshape(-1, predicted.shape[1])
    for projection, rows, target in (
        (model.joint.enc, encoded_ND, 1.0),
        (model.joint.pred, predicted_ND, 0.9),
    ):
        nn.init.normal_(projection.weight)
        values = rows @ projection.weight.T
        projection.weight.mul_(target / (values - values.mean(0)).std())
        projection.bias.copy_(-(rows @ projection.weight.T).mean(0))
    output = model.joint.joint_net[2]
    nn.init.normal_(output.weight, std=3.0 / np.sqrt(output.weight.shape[1]))
    nn.init.zeros_(output.bias)


def _set_rates(model: Any, streams: list[torch.Tensor], recipe: Recipe) -> None:
    """Bias the blank until the wanted rate comes out, and let the marks come up among the tokens."""
    blank = model.decoder.blank_idx
    bias = model.joint.joint_net[2].bias
    wanted = TOKENS_PER_FRAME * sum(len(frames_TD) for frames_TD in streams)

    def decode() -> list[int]:
        return [token for frames_TD in streams for token in greedy(model, frames_TD).tokens]

    # Without any bias nearly every decision emits: start from where that is over.
    low, high = 4.0, 24.0
    for _ in range(8):
        bias[blank] = (low + high) / 2
        if len(decode()) < wanted:
            high = float(bias[blank])
        else:
            low = float(bias[blank])
    bias[blank] = low
    for number in range(len(recipe.marks)):
        _swap_with_common_token(model, decode(), recipe.pieces + number, recipe)


def _swap_with_common_token(model: Any, tokens: list[int], mark: int, recipe: Recipe) -> None:
    """Give a mark the weights of a token that has about the wanted share, and that token the mark's."""
    plain = {token: tokens.count(token) / len(tokens) for token in tokens if token < recipe.pieces}
    if not plain:
        raise ValueError(f"no token is there whose place the mark {mark} could take")
    common = min(plain, key=lambda token: abs(plain[token] - MARK_SHARE))
    pair, swapped = [mark, common], [common, mark]
    output = model.joint.joint_net[2]
    for tensor in (output.weight, output.bias, model.decoder.prediction["embed"].weight):
        tensor[pair] = tensor[swapped]
