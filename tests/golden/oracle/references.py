"""Reference values from NeMo: offline, under the streaming mask.  Runs in NeMo's environment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf, open_dict

from tests.golden.clips import Clip, medleys, single_clips
from tests.golden.oracle.decoding import Decoded, greedy
from tests.golden.oracle.recipes import Recipe

DETAILED = ("goforward", "jfk")
"""Recordings with intermediate values: one shorter than the left context of 5.6 s, one longer."""


def restore(path: Path) -> Any:
    """NeMo's model for inference, with confidences preserved by its own decoding."""
    model = ASRModel.restore_from(str(path), map_location="cpu")
    model.eval()
    decoding = model.cfg.decoding
    with open_dict(decoding):
        decoding.strategy = "greedy_batch"
        decoding.confidence_cfg = OmegaConf.create(
            {
                "preserve_frame_confidence": True,
                "preserve_token_confidence": True,
                "exclude_blank": True,
                "method_cfg": {"name": "max_prob", "alpha": 1.0},
            }
        )
    model.change_decoding_strategy(decoding)
    model.eval()
    return model


@torch.no_grad()
def make_references(recipe: Recipe, checkpoint: Path, folder: Path) -> None:
    """Write one npz for each context and clip."""
    model = restore(checkpoint)
    for context in recipe.contexts:
        model.encoder.set_default_att_context_size(list(context))
        clips: list[Clip] = list(single_clips())
        if recipe.medley_contexts is None or context in recipe.medley_contexts:
            clips += medleys(recipe.medleys)
        for language in recipe.languages or (None,):
            for number, clip in enumerate(clips if language in (None, "auto") else clips[:1]):
                values = _reference(model, recipe, clip, language, checked=number < 6)
                suffix = "" if language in (None, "auto") else f"-{language}"
                name = f"{recipe.name}-{context[0]}-{context[1]}-{clip.name}{suffix}.npz"
                np.savez(folder / name, **values)


def _reference(
    model: Any, recipe: Recipe, clip: Clip, language: str | None, *, checked: bool
) -> dict[str, Any]:
    samples = torch.from_numpy(clip.samples)[None]
    mel, mel_length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
    kept: dict[str, torch.Tensor] = {}
    handles = [model.encoder.pre_encode.register_forward_hook(_keep(kept, "subsampled"))]
    handles += [
        layer.register_forward_hook(_keep(kept, f"layer_{number}"))
        for number, layer in enumerate(model.encoder.layers)
    ]
    encoded, length = model.encoder(audio_signal=mel, length=mel_length)
    for handle in handles:
        handle.remove()
    if language is not None:
        model.set_inference_prompt(language)
        encoded = model._apply_prompt_to_encoded(encoded)
    encoded_TD = encoded[0, :, : int(length)].transpose(0, 1).contiguous()
    plain = greedy(model, encoded_TD)
    marks = {recipe.pieces + number for number in range(len(recipe.marks))}
    reset = greedy(model, encoded_TD, reset_at=marks) if marks else plain
    if checked:
        _check_against_nemo(model, encoded, length, plain, set())
        _check_against_nemo(model, encoded, length, reset, marks)
    values: dict[str, Any] = {
        "tokens": plain.tokens, "frames": plain.frames, "confidences": plain.confidences,
        "reset_tokens": reset.tokens, "reset_frames": reset.frames,
        "reset_confidences": reset.confidences, "num_frames": int(length),
    }  # fmt: skip
    if clip.name in DETAILED:
        values |= {
            "mel": mel[0, :, : int(mel_length)].numpy(),
            "subsampled": kept["subsampled"][0, : int(length)].numpy(),
            "layers": np.stack(
                [kept[f"layer_{number}"][0, : int(length)].numpy() for number in range(recipe.layers)]
            ),
            "encoded": encoded_TD.numpy(),
            "logits": plain.logits,
        }
    return values


def _keep(kept: dict[str, torch.Tensor], name: str) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _check_against_nemo(
    model: Any, encoded: torch.Tensor, length: torch.Tensor, own: Decoded, marks: set[int]
) -> None:
    """NeMo's batched greedy decoding must give the loop's tokens, times and confidences.

    With marks, NeMo's decoder is called afresh on the frames after each of them.
    """
    tokens: list[int] = []
    frames: list[int] = []
    confidences: list[float] = []
    start = 0
    while start < int(length):
        hypothesis = model.decoding.rnnt_decoder_predictions_tensor(
            encoder_output=encoded[:, :, start:], encoded_lengths=length - start, return_hypotheses=True
        )[0]
        found = [int(token) for token in hypothesis.y_sequence]
        count = next((index + 1 for index, token in enumerate(found) if token in marks), len(found))
        times = [start + int(time) for time in hypothesis.timestamp[:count]]
        tokens += found[:count]
        frames += times
        confidences += [float(value) for value in hypothesis.token_confidence[:count]]
        if count == 0 or found[count - 1] not in marks:
            break
        start = times[-1] + 1
    if (tokens, frames) != (own.tokens, own.frames):
        raise AssertionError(f"NeMo's own decoding gives {tokens} at {frames}, the loop {own}")
    if not np.allclose(confidences, own.confidences, atol=1e-5):
        raise AssertionError(f"NeMo's own confidences are {confidences}, the loop's {own.confidences}")


def count_tokens(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Non-blank tokens of the references by checkpoint, for the log of a run."""
    return {
        name: sum(len(np.load(path)["tokens"]) for path in folder.glob(f"{name}-*.npz")) for name in names
    }
