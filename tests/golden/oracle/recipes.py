"""Checkpoints that the golden tests use: the trained tiny model, and synthetic ones of real dimensions.

The dimensions are those of the published checkpoints; weights are random, with the front end and the
joint set so that the outputs depend on the audio and some tokens come out every second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

Contexts = tuple[tuple[int, int], ...]

ALL_CONTEXTS: Final[Contexts] = ((70, 13), (70, 6), (70, 1), (70, 0))


@dataclass(frozen=True, slots=True)
class Recipe:
    """One checkpoint to make.

    `pieces` counts plain SentencePiece pieces; `marks` are appended to them.  `medleys` is how many
    medleys get token references; intermediate values are kept for two recordings at each context.
    `medley_contexts` None takes all contexts.
    """

    name: str
    layers: int
    d_model: int
    heads: int
    channels: int
    pred_layers: int
    hidden: int
    contexts: Contexts
    pieces: int
    marks: tuple[str, ...] = ()
    punctuation: bool = False
    n_mels: int = 128
    use_bias: bool = False
    xscaling: bool = False
    untie_biases: bool = True
    hybrid: bool = False
    languages: dict[str, int] = field(default_factory=dict)
    num_prompts: int = 128
    medleys: int = 4
    medley_contexts: Contexts | None = None
    trained: bool = False
    seed: int = 0

    def encoder(self) -> dict[str, Any]:
        """Arguments of NeMo's ConformerEncoder."""
        return {
            "feat_in": self.n_mels, "feat_out": -1, "n_layers": self.layers, "d_model": self.d_model,
            "use_bias": self.use_bias, "subsampling": "dw_striding", "subsampling_factor": 8,
            "subsampling_conv_channels": self.channels, "causal_downsampling": True, "reduction": None,
            "reduction_position": None, "reduction_factor": 1, "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos", "n_heads": self.heads,
            "att_context_size": [list(context) for context in self.contexts],
            "att_context_style": "chunked_limited", "xscaling": self.xscaling,
            "untie_biases": self.untie_biases, "pos_emb_max_len": 5000, "conv_kernel_size": 9,
            "conv_norm_type": "layer_norm", "conv_context_size": "causal", "dropout": 0.1,
            "dropout_pre_encoder": 0.1, "dropout_emb": 0.0, "dropout_att": 0.1,
            "stochastic_depth_drop_prob": 0.0,
        }  # fmt: skip

    def preprocessor(self) -> dict[str, Any]:
        """Arguments of NeMo's mel front end."""
        return {
            "sample_rate": 16000, "normalize": "NA", "window_size": 0.025, "window_stride": 0.01,
            "window": "hann", "features": self.n_mels, "n_fft": 512, "log": True, "frame_splicing": 1,
            "dither": 1e-5, "pad_to": 0, "pad_value": 0.0,
        }  # fmt: skip


RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny", layers=12, d_model=192, heads=4, channels=128, pred_layers=1, hidden=256,
            contexts=ALL_CONTEXTS, pieces=512, marks=("<EOU>",), medleys=12, trained=True,
        ),
        # nvidia/parakeet_realtime_eou_120m-v1
        Recipe(
            "small", layers=17, d_model=512, heads=8, channels=256, pred_layers=1, hidden=640,
            contexts=((70, 1),), pieces=1024, marks=("<EOU>", "<EOB>"), medleys=16, seed=1,
        ),
        # nvidia/nemotron-speech-streaming-en-0.6b
        Recipe(
            "large", layers=24, d_model=1024, heads=8, channels=256, pred_layers=2, hidden=640,
            contexts=ALL_CONTEXTS, pieces=1024, punctuation=True, medleys=2,
            medley_contexts=((70, 13), (70, 0)), seed=2,
        ),
        # nvidia/nemotron-3.5-asr-streaming-0.6b by its public description, with 4 of its 24 layers
        Recipe(
            "prompted", layers=4, d_model=1024, heads=8, channels=256, pred_layers=2, hidden=640,
            contexts=((56, 13), (56, 6), (56, 3), (56, 1), (56, 0)), pieces=2048, punctuation=True,
            languages={"en-US": 0, "de-DE": 9, "auto": 101}, medleys=2, seed=3,
        ),
        # What the other settings of a cache-aware FastConformer transducer change: biases, scaling of
        # the input, one pair of position biases for all layers, 80 mel bins, a CTC head to ignore.
        Recipe(
            "variant", layers=3, d_model=256, heads=4, channels=64, pred_layers=2, hidden=320,
            contexts=((70, 13), (70, 6), (70, 1), (70, 0)), pieces=768, n_mels=80, use_bias=True,
            xscaling=True, untie_biases=False, hybrid=True, medleys=4, seed=4,
        ),
    )
}  # fmt: skip
