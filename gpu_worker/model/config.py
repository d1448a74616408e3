"""Architecture of a cache-aware FastConformer transducer, read from NeMo's `model_config.yaml`.

Every setting that changes what the model computes is read or refused: a value that this
implementation would silently compute differently is a `ModelConfigError` that names the setting, the
value, and what is supported.  Settings of training (dropout, augmentation, optimizer, loss) are
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gpu_worker.model.errors import ModelConfigError
from gpu_worker.model.loading.config_reader import Section

MS_PER_MEL_FRAME: Final = 10
OWN_SECTION: Final = "parakeet"

_PLAIN_CLASSES: Final = ("EncDecRNNTBPEModel", "EncDecRNNTBPEEOUModel")
_PROMPT_CLASSES: Final = ("EncDecRNNTBPEModelWithPrompt",)
_HYBRID_CLASSES: Final = ("EncDecHybridRNNTCTCBPEModel", "EncDecHybridRNNTCTCBPEEOUModel")
_HYBRID_PROMPT_CLASSES: Final = ("EncDecHybridRNNTCTCBPEModelWithPrompt",)
SUPPORTED_CLASSES: Final = _PLAIN_CLASSES + _PROMPT_CLASSES + _HYBRID_CLASSES + _HYBRID_PROMPT_CLASSES

# Settings that only training, NeMo's offline helpers or the computation of the stored filter bank use.
_PREPROCESSOR_IGNORED: Final = (
    "_target_", "dither", "pad_to", "pad_value", "lowfreq", "highfreq", "mel_norm", "rng", "use_torchaudio",
    "nb_augmentation_prob", "nb_max_freq", "stft_exact_pad", "stft_conv",
)  # fmt: skip
_ENCODER_IGNORED: Final = (
    "_target_", "feat_in", "subsampling_conv_chunking_factor", "reduction_position", "reduction_factor",
    "att_context_probs", "pos_emb_max_len", "dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att",
    "stochastic_depth_drop_prob", "stochastic_depth_mode", "stochastic_depth_start_layer",
    "global_tokens_spacing", "global_attn_separate", "use_pytorch_sdpa", "use_pytorch_sdpa_backends",
    "sync_max_audio_length",
)  # fmt: skip
_DECODER_IGNORED: Final = ("_target_", "random_state_sampling")
_JOINT_IGNORED: Final = (
    "_target_", "log_softmax", "preserve_memory", "fuse_loss_wer", "fused_batch_size", "n_samples",
    "experimental_fuse_loss_wer", "masking_prob",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MelConfig:
    """Log-mel front end (NeMo `AudioToMelSpectrogramPreprocessor`, `normalize: NA`).

    `win_length` and `hop_length` are in samples; `log_zero_guard` is added before the logarithm.
    """

    n_mels: int
    n_fft: int
    win_length: int
    hop_length: int
    preemphasis: float
    log_zero_guard: float


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """Language conditioning: a one-hot prompt beside every encoder frame, then a two-layer kernel.

    `languages` maps a name such as ``en-US`` or ``auto`` to its index below `num_prompts`.
    """

    num_prompts: int
    languages: tuple[tuple[str, int], ...]

    def index(self, language: str) -> int:
        """Return the index of a language. Raises ModelConfigError, which lists the known languages."""
        for name, index in self.languages:
            if name == language:
                return index
        known = ", ".join(sorted(name for name, _ in self.languages)) or "none"
        raise ModelConfigError(f"The model has no language prompt '{language}'; it has {known}.")

    @property
    def default_language(self) -> str | None:
        """Return ``auto`` if the model has it, else its prompt of the lowest index."""
        names = {name for name, _ in self.languages}
        if "auto" in names:
            return "auto"
        return min(self.languages, key=lambda item: item[1])[0] if self.languages else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The settings of a checkpoint's encoder.

    `att_contexts` lists (left, right) attention contexts in encoder frames that the checkpoint was
    trained with; a chunk is right + 1 encoder frames.
    """

    d_model: int
    num_layers: int
    num_heads: int
    ff_dim: int
    conv_kernel: int
    subsampling_channels: int
    subsampling_factor: int
    use_bias: bool
    xscaling: bool
    untie_biases: bool
    att_contexts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(EncoderConfig):
    """The settings of a checkpoint that the forward pass and the engine use.

    `vocab_size` does not count the blank.  `eou_id`, `eob_id` are the ids of ``<EOU>`` and ``<EOB>``.
    """

    model_class: str
    sample_rate: int
    mel: MelConfig
    default_context: tuple[int, int]
    pred_hidden: int
    pred_layers: int
    joint_hidden: int
    vocab_size: int
    eou_id: int | None
    eob_id: int | None
    max_symbols: int
    prompt: PromptConfig | None = None

    @property
    def blank_id(self) -> int:
        """Id of the blank, behind the vocabulary."""
        return self.vocab_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def frame_ms(self) -> int:
        """Length of one encoder frame in milliseconds."""
        return self.subsampling_factor * self.mel.hop_length * 1000 // self.sample_rate

    @property
    def frame_samples(self) -> int:
        """Length of one encoder frame in samples."""
        return self.subsampling_factor * self.mel.hop_length

    @property
    def subsampled_mels(self) -> int:
        """Frequency bins that are left after the subsampling convolutions."""
        bins = self.mel.n_mels
        factor = self.subsampling_factor
        while factor > 1:
            bins, factor = bins // 2 + 1, factor // 2
        return bins

    @property
    def chunk_sizes_ms(self) -> tuple[int, ...]:
        """Legal chunk lengths in milliseconds, ascending."""
        return tuple(sorted({(right + 1) * self.frame_ms for _, right in self.att_contexts}))

    def context_for_chunk(self, chunk_ms: int | None) -> tuple[int, int]:
        """Return the (left, right) context whose chunk lasts `chunk_ms`; None stands for the default context.

        Raises ModelConfigError, which lists the legal lengths.
        """
        if chunk_ms is None:
            return self.default_context
        for left, right in self.att_contexts:
            if (right + 1) * self.frame_ms == chunk_ms:
                return left, right
        legal = ", ".join(str(ms) for ms in self.chunk_sizes_ms)
        raise ModelConfigError(
            f"--chunk-ms is {chunk_ms}, but this model was trained for chunks of {legal} ms only."
        )


def prompt_index(prompt: PromptConfig | None, language: str | None) -> int:
    """Return the index of the prompt for a language; None stands for the default language.

    A model without prompts has index 0 only. Raises ModelConfigError for a language without a prompt.
    """
    if prompt is None:
        if language is None:
            return 0
        raise ModelConfigError(f"The model takes no language; '{language}' was asked for.")
    name = language or prompt.default_language
    return 0 if name is None else prompt.index(name)


def read_model_config(path: Path) -> ModelConfig:
    """Read a `model_config.yaml` file.  Raises ModelConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelConfigError(f"{path} cannot be read: {error}.") from error
    return parse_model_config(load_yaml(text, str(path)))


def load_yaml(text: str, name: str) -> Mapping[str, Any]:
    """Parse the text of a `model_config.yaml`.  Raises ModelConfigError naming `name`."""
    try:
        # The C loader reads the long vocabulary lists ten times faster. Both loaders are safe.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        values = yaml.load(text, Loader=loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ModelConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ModelConfigError(f"{name} holds {type(values).__name__}, a mapping of settings was expected.")
    return values


def parse_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Check a NeMo model config and keep what inference needs.

    Raises ModelConfigError for a missing, unknown or unsupported value.
    """
    root = Section("", values)
    model_class = _model_class(root)
    sample_rate = root.integer("sample_rate", default=16000)
    if sample_rate != 16000:
        raise root.unsupported("sample_rate", sample_rate, "16000")
    mel = _mel(root.section("preprocessor"), sample_rate)
    encoder = _encoder(root.section("encoder"), mel)
    pred_hidden, pred_layers, vocab_size = _decoder(root.section("decoder"))
    joint = root.section("joint")
    joint_hidden = _joint(joint, encoder.d_model, pred_hidden, vocab_size)
    vocabulary = _vocabulary(joint, vocab_size)
    return ModelConfig(
        **asdict(encoder),
        model_class=model_class,
        sample_rate=sample_rate,
        mel=mel,
        default_context=_default_context(root, encoder.att_contexts),
        pred_hidden=pred_hidden,
        pred_layers=pred_layers,
        joint_hidden=joint_hidden,
        vocab_size=vocab_size,
        eou_id=vocabulary.get("<EOU>"),
        eob_id=vocabulary.get("<EOB>"),
        max_symbols=_max_symbols(root),
        prompt=_prompt(root, model_class, encoder.d_model),
    )


def _model_class(root: Section) -> str:
    target = root.text("target", default="")
    name = target.rpartition(".")[2]
    if name not in SUPPORTED_CLASSES:
        raise ModelConfigError(
            f"The checkpoint's class (target) is '{target or 'not given'}'; supported are "
            f"{', '.join(SUPPORTED_CLASSES)}."
        )
    return name


def _mel(section: Section, sample_rate: int) -> MelConfig:
    section.expect("_target_", ("AudioToMelSpectrogramPreprocessor",), default="", last_part=True)
    section.expect("normalize", ("NA", None), default="per_feature")
    section.expect("window", ("hann",), default="hann")
    section.expect("log", (True,), default=True)
    section.expect("log_zero_guard_type", ("add",), default="add")
    section.expect("frame_splicing", (1,), default=1)
    section.expect("exact_pad", (False,), default=False)
    section.expect("mag_power", (2.0,), default=2.0)
    section.expect("sample_rate", (sample_rate,), default=sample_rate)
    win_length = section.optional_integer("n_window_size")
    hop_length = section.optional_integer("n_window_stride")
    if win_length is None:
        win_length = int(section.number("window_size", default=0.02) * sample_rate)
    if hop_length is None:
        hop_length = int(section.number("window_stride", default=0.01) * sample_rate)
    if hop_length * 1000 != MS_PER_MEL_FRAME * sample_rate:
        raise section.unsupported("window_stride", hop_length / sample_rate, "0.01")
    n_fft = section.optional_integer("n_fft") or 1 << (win_length - 1).bit_length()
    if n_fft < win_length:
        raise section.unsupported("n_fft", n_fft, f"at least the window's {win_length} samples")
    mel = MelConfig(
        n_mels=section.positive("features", default=64),
        n_fft=n_fft,
        win_length=win_length,
        hop_length=hop_length,
        preemphasis=section.number("preemph", default=0.97),
        log_zero_guard=section.number("log_zero_guard_value", default=2.0**-24),
    )
    section.refuse_unknown(_PREPROCESSOR_IGNORED)
    return mel


def _encoder(section: Section, mel: MelConfig) -> EncoderConfig:
    section.expect("_target_", ("ConformerEncoder",), default="", last_part=True)
    section.expect("subsampling", ("dw_striding",), default="striding")
    section.expect("subsampling_factor", (8,), default=4)
    section.expect("causal_downsampling", (True,), default=False)
    section.expect("reduction", (None,), default=None)
    section.expect("self_attention_model", ("rel_pos",), default="rel_pos")
    section.expect("att_context_style", ("chunked_limited",), default="regular")
    section.expect("conv_norm_type", ("layer_norm",), default="batch_norm")
    section.expect("conv_context_style", ("regular",), default="regular")
    section.expect("global_tokens", (0,), default=0)
    section.expect("att_chunk_context_size", (None,), default=None)
    section.expect("feat_in", (mel.n_mels,), default=mel.n_mels)
    d_model = section.positive("d_model")
    num_heads = section.positive("n_heads", default=4)
    if d_model % num_heads:
        raise section.unsupported("n_heads", num_heads, f"a divisor of d_model {d_model}")
    section.expect("feat_out", (-1, d_model, None), default=-1)
    conv_kernel = section.positive("conv_kernel_size", default=31)
    section.expect("conv_context_size", ("causal", [conv_kernel - 1, 0]), default=None)
    channels = section.integer("subsampling_conv_channels", default=-1)
    encoder = EncoderConfig(
        d_model=d_model,
        num_layers=section.positive("n_layers"),
        num_heads=num_heads,
        ff_dim=d_model * section.positive("ff_expansion_factor", default=4),
        conv_kernel=conv_kernel,
        subsampling_channels=d_model if channels == -1 else channels,
        subsampling_factor=section.positive("subsampling_factor", default=4),
        use_bias=section.boolean("use_bias", default=True),
        xscaling=section.boolean("xscaling", default=True),
        untie_biases=section.boolean("untie_biases", default=True),
        att_contexts=_contexts(section),
    )
    section.refuse_unknown(_ENCODER_IGNORED)
    return encoder


def _contexts(section: Section) -> tuple[tuple[int, int], ...]:
    value = section.raw("att_context_size")
    supported = "pairs [left, right] of encoder frames, left a multiple of right + 1"
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    contexts: list[tuple[int, int]] = []
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(type(part) is int for part in pair)
            or pair[0] < 1
            or pair[1] < 0
            or pair[0] % (pair[1] + 1)
        ):
            raise section.unsupported("att_context_size", value, supported)
        contexts.append((pair[0], pair[1]))
    return tuple(contexts)


def _default_context(root: Section, contexts: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the first context, as NeMo does, unless this project's section of the file names another."""
    own = root.optional_section(OWN_SECTION)
    if own is None:
        return contexts[0]
    value = own.raw("default_att_context_size")
    own.refuse_unknown(())
    for context in contexts:
        if value == list(context):
            return context
    raise own.unsupported("default_att_context_size", value, f"one of {[list(c) for c in contexts]}")


def _decoder(section: Section) -> tuple[int, int, int]:
    section.expect("_target_", ("RNNTDecoder",), default="", last_part=True)
    section.expect("normalization_mode", (None,), default=None)
    section.expect("blank_as_pad", (True,), default=True)
    vocab_size = section.positive("vocab_size")
    prednet = section.section("prednet")
    pred_hidden = prednet.positive("pred_hidden")
    pred_layers = prednet.positive("pred_rnn_layers")
    prednet.expect("rnn_hidden_size", (-1, pred_hidden, None), default=-1)
    prednet.refuse_unknown(("t_max", "dropout", "weights_init_scale", "hidden_hidden_bias_scale", "rnn_type"))
    section.refuse_unknown(_DECODER_IGNORED)
    return pred_hidden, pred_layers, vocab_size


def _joint(section: Section, d_model: int, pred_hidden: int, vocab_size: int) -> int:
    section.expect("_target_", ("RNNTJoint", "SampledRNNTJoint"), default="", last_part=True)
    # Extra outputs are durations (TDT) or multi-frame blanks: another decoding algorithm.
    section.expect("num_extra_outputs", (0,), default=0)
    section.expect("num_classes", (vocab_size,))
    jointnet = section.section("jointnet")
    joint_hidden = jointnet.positive("joint_hidden")
    jointnet.expect("activation", ("relu",))
    jointnet.expect("encoder_hidden", (d_model,), default=d_model)
    jointnet.expect("pred_hidden", (pred_hidden,), default=pred_hidden)
    jointnet.refuse_unknown(("dropout",))
    section.refuse_unknown((*_JOINT_IGNORED, "vocabulary"))
    return joint_hidden


def _vocabulary(joint: Section, vocab_size: int) -> dict[str, int]:
    value = joint.raw("vocabulary", default=None)
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) != vocab_size:
        size = len(value) if isinstance(value, list) else type(value).__name__
        raise joint.unsupported("vocabulary", size, f"a list of vocab_size = {vocab_size} pieces")
    return {str(piece): index for index, piece in enumerate(value)}


def _max_symbols(root: Section) -> int:
    """Return the most symbols of a frame in greedy decoding. NeMo's default is 10; null means no limit."""
    decoding = root.optional_section("decoding")
    greedy = decoding.optional_section("greedy") if decoding is not None else None
    if greedy is None:
        return 10
    limit = greedy.optional_integer("max_symbols")
    if limit is None:
        limit = greedy.optional_integer("max_symbols_per_step")
    if limit is not None and limit < 1:
        raise greedy.unsupported("max_symbols", limit, "at least 1")
    return 10 if limit is None else limit


def _prompt(root: Section, model_class: str, d_model: int) -> PromptConfig | None:
    if model_class not in _PROMPT_CLASSES + _HYBRID_PROMPT_CLASSES:
        return None
    defaults = root.section("model_defaults")
    if not defaults.boolean("initialize_prompt_feature", default=False):
        return None
    defaults.expect("enc_hidden", (d_model,), default=d_model)
    num_prompts = root.optional_integer("num_prompts") or defaults.positive("num_prompts", default=128)
    dictionary = defaults.raw("prompt_dictionary", default={})
    if not isinstance(dictionary, dict) or not all(
        isinstance(name, str) and type(index) is int and 0 <= index < num_prompts
        for name, index in dictionary.items()
    ):
        raise defaults.unsupported(
            "prompt_dictionary", dictionary, f"names of languages with an index below {num_prompts}"
        )
    return PromptConfig(num_prompts=num_prompts, languages=tuple(dictionary.items()))
