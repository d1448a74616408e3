"""NeMo's own modules behind the few calls of the reference engine.

A chunk of C encoder frames has 8 C mel frames. The first chunk has 1 + 8 (C - 1), with none in front. Later
chunks also carry the last 9 mel frames, or the single one of a first chunk of one encoder frame, and drop the
encoder frames that these produce. There is no padding that the offline pass does not have, so that the steps
equal the offline pass under the same mask.

Shape legend: B rows, F mel bins, M mel frames, D model width, L layers.

Source: NeMo `parts/mixins/streaming.py` (cache_aware_stream_step), `modules/rnnt.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from gpu_worker.engine.interface import UnsupportedOption
from gpu_worker.kernels.reference.greedy_decode_reference import token_confidence
from gpu_worker.model.errors import CheckpointError, ModelConfigError, ModelError
from gpu_worker.model.loading.fingerprint import weights_name
from gpu_worker.model.tokenizer import Tokenizer

# Mel frames before the wanted ones whose window or preemphasis a cut signal would distort.
_LEAD_MELS: Final = 3


class NemoMissingError(ModelError):
    """NeMo is not installed."""


@dataclass(slots=True)
class NemoState:
    """The state of NeMo's modules for a stream.

    caches are None before the first chunk: last channel [L, 1, left, D], last time [L, 1, D, K - 1] and
    the number of cached frames [1]. `mels_FM` are the mel frames that precede the next chunk.
    """

    caches: tuple[Tensor, Tensor, Tensor] | None = None
    mels_FM: Tensor | None = None
    predicted: Tensor | None = None
    predictor: Any = None

    @property
    def num_cached_mels(self) -> int:
        """Number of mel frames that precede the next chunk; 0 before the first."""
        return 0 if self.mels_FM is None else self.mels_FM.shape[1]

    def export(self) -> dict[str, Tensor]:
        """Return all tensors by name, on the host."""
        tensors: dict[str, Tensor] = {}
        if self.caches is not None and self.mels_FM is not None:
            named = zip(("last_channel", "last_time", "cached"), self.caches, strict=True)
            tensors |= dict(named) | {"mels": self.mels_FM}
        if self.predicted is not None:
            tensors["predicted"] = self.predicted
        if self.predictor is not None:
            tensors["hidden"], tensors["cell"] = self.predictor
        return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], device: torch.device) -> NemoState:
        """Return the state of which `tensors` is the export."""
        held = {name: tensor.to(device) for name, tensor in tensors.items()}
        state = cls(predicted=held.get("predicted"))
        if "last_channel" in held:
            state.caches = (held["last_channel"], held["last_time"], held["cached"])
            state.mels_FM = held["mels"]
        if "hidden" in held:
            state.predictor = (held["hidden"], held["cell"])
        return state


class NemoModel:
    """A cache-aware transducer, computed by NeMo, with one attention context."""

    def __init__(self, path: Path, device: torch.device, chunk_ms: int | None, *, reset_at_end: bool) -> None:
        """Restore a `.nemo` file with NeMo.

        Raises NemoMissingError, CheckpointError for a file that NeMo refuses, ModelConfigError for a model
        that is no transducer with a chunked encoder, or a chunk length that it was not trained for.
        """
        self.model: Any = _restore(path, device)
        encoder = self.model.encoder
        if getattr(encoder, "att_context_style", None) != "chunked_limited" or not hasattr(
            self.model, "joint"
        ):
            raise ModelConfigError(
                f"{path} is no transducer with an encoder of att_context_style chunked_limited; "
                "--backend nemo supports no other."
            )
        self.device = device
        self.hop_samples = int(self.model.preprocessor.featurizer.hop_length)
        self.window_samples = int(self.model.preprocessor.featurizer.win_length)
        self.factor = int(encoder.subsampling_factor)
        self.context = self._choose_context(chunk_ms)
        encoder.set_default_att_context_size(list(self.context))
        encoder.setup_streaming_params()
        streaming = encoder.streaming_cfg
        self.chunk_frames = self.context[1] + 1
        self.cached_mels = int(streaming.pre_encode_cache_size[1])
        self.tokenizer = Tokenizer(self.model.tokenizer.tokenizer.serialized_model_proto(), str(path))
        self._blank = int(self.model.decoder.blank_idx)
        greedy = self.model.cfg.decoding.get("greedy") or {}
        self.max_symbols = int(greedy.get("max_symbols") or greedy.get("max_symbols_per_step") or 10)
        ends = (self.tokenizer.eou_id, self.tokenizer.eob_id)
        self._ends = {token for token in ends if token is not None} if reset_at_end else set()
        self._languages: dict[str, int] = dict(self.model.cfg.model_defaults.get("prompt_dictionary") or {})
        if not getattr(self.model, "concat", False):
            self._languages = {}

    def _choose_context(self, chunk_ms: int | None) -> tuple[int, int]:
        contexts = [(int(left), int(right)) for left, right in self.model.encoder.att_context_size_all]
        if chunk_ms is None:
            return contexts[0]
        frame_ms = self.hop_samples * self.factor // 16
        for context in contexts:
            if (context[1] + 1) * frame_ms == chunk_ms:
                return context
        legal = ", ".join(str(ms) for ms in sorted((right + 1) * frame_ms for _, right in contexts))
        raise ModelConfigError(
            f"--chunk-ms is {chunk_ms}, but this model was trained for chunks of {legal} ms only."
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Names of the language prompts."""
        return tuple(self._languages)

    def language(self, wanted: str | None) -> str | None:
        """Return the prompt for a stream: the wanted one, else the default.  Raises UnsupportedOption."""
        if wanted is None:
            if "auto" in self._languages:
                return "auto"
            return min(self._languages, key=lambda name: self._languages[name], default=None)
        if wanted not in self._languages:
            known = ", ".join(sorted(self._languages)) or "none"
            raise UnsupportedOption(f"The model has no language prompt '{wanted}'; it has {known}.")
        return wanted

    @property
    def fingerprint(self) -> str:
        """Identifier of weights and context, for snapshots; the joint's output layer stands for all."""
        digest = hashlib.sha256(repr((self.context, sorted(self._ends))).encode())
        digest.update(self.model.joint.joint_net[-1].weight.detach().float().cpu().numpy().tobytes())
        return f"nemo-{digest.hexdigest()}"

    @property
    def weights_name(self) -> str:
        """Name of the weights, the same as a native worker's."""
        return weights_name(self.model.state_dict(), len(self.model.encoder.layers))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def mels(self, samples: Tensor, first_sample: int, first: int, end: int) -> Tensor:
        """Return mel frames first .. end - 1 of a stream, [F, M].

        `samples` begin at `first_sample`, at `signal_start(first)` or before, and reach past the window of
        the last frame unless the stream ends there.
        """
        lead = max(0, first - _LEAD_MELS)
        signal = samples[lead * self.hop_samples - first_sample :].to(self.device).unsqueeze(0)
        length = torch.tensor([signal.shape[1]], device=self.device)
        mels, _ = self.model.preprocessor(input_signal=signal, length=length)
        found: Tensor = mels[0, :, first - lead : end - lead]
        if found.shape[1] != end - first:
            raise AssertionError(f"{found.shape[1]} mel frames where {end - first} were wanted")
        return found

    def signal_start(self, first: int) -> int:
        """Return the first sample that `mels` needs for mel frame `first`."""
        return max(0, first - _LEAD_MELS) * self.hop_samples

    def encode(self, states: Sequence[NemoState], mels: Sequence[Tensor], language: str | None) -> Tensor:
        """Return encoder frames [B, T, D] of rows with equally many new, and equally many cached, mels."""
        cached_mels = states[0].num_cached_mels
        is_first = cached_mels == 0
        if is_first:
            caches = self.model.encoder.get_initial_cache_state(batch_size=len(states), device=self.device)
            rows = list(mels)
        else:
            held = [state.caches for state in states if state.caches is not None]
            caches = tuple(
                torch.cat([row[part] for row in held], dim=1 if part < 2 else 0) for part in range(3)
            )
            kept = [state.mels_FM for state in states if state.mels_FM is not None]
            rows = [torch.cat(pair, dim=1) for pair in zip(kept, mels, strict=True)]
        signal = torch.stack(rows)
        encoded, length, last_channel, last_time, cached = self.model.encoder.cache_aware_stream_step(
            processed_signal=signal,
            processed_signal_length=torch.full((len(rows),), signal.shape[2], device=self.device),
            cache_last_channel=caches[0],
            cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
            keep_all_outputs=True,
            drop_extra_pre_encoded=0 if is_first else 1 + (cached_mels - 1) // self.factor,
        )
        for row, (state, mel) in enumerate(zip(states, rows, strict=True)):
            state.caches = (
                last_channel[:, row : row + 1], last_time[:, row : row + 1], cached[row : row + 1],
            )  # fmt: skip
            state.mels_FM = mel[:, -self.cached_mels :]
        if language is not None:
            self.model.set_inference_prompt(language)
            encoded = self.model._apply_prompt_to_encoded(encoded)
        frames: Tensor = encoded[:, :, : int(length[0])].transpose(1, 2)
        return frames

    def decode(self, state: NemoState, encoded_TD: Tensor) -> list[tuple[int, int, float]]:
        """Decode one stream's frames greedily with NeMo's decoder and joint.

        Returns tokens, each with its frame, counted from the first, and its confidence.
        """
        decoder, joint = self.model.decoder, self.model.joint
        if state.predicted is None:
            self._start(state)
        tokens: list[tuple[int, int, float]] = []
        for number in range(encoded_TD.shape[0]):
            frame = encoded_TD[number : number + 1].unsqueeze(0)
            for _ in range(self.max_symbols):
                scores = joint.joint(frame, state.predicted)[0, 0, 0].float()
                token = int(scores.argmax())
                if token == self._blank:
                    break
                confidence = float(token_confidence(scores.log_softmax(-1)))
                tokens.append((token, number, confidence))
                if token in self._ends:
                    self._start(state)
                    break
                label = torch.tensor([[token]], device=self.device)
                state.predicted, state.predictor = decoder.predict(
                    label, state.predictor, add_sos=False, batch_size=1
                )
        return tokens

    def _start(self, state: NemoState) -> None:
        state.predicted, state.predictor = self.model.decoder.predict(None, None, add_sos=False, batch_size=1)


def _restore(path: Path, device: torch.device) -> Any:
    try:
        from nemo.collections.asr.models import ASRModel
        from nemo.utils import logging as nemo_logging
    except ImportError as error:
        raise NemoMissingError(
            f"--backend nemo needs NVIDIA NeMo: pip install 'parakeet-server[nemo]' ({error})."
        ) from error
    if path.is_dir():
        raise CheckpointError(f"--backend nemo reads .nemo files; {path} is a folder.")
    nemo_logging.setLevel(nemo_logging.ERROR)
    try:
        model = ASRModel.restore_from(str(path), map_location=device)
    except Exception as error:
        # NeMo raises the errors of its parts: tar, OmegaConf, Hydra and torch errors among them.
        raise CheckpointError(f"NeMo cannot restore {path}: {type(error).__name__}: {error}") from error
    model.eval()
    return model
