"""Phrase boosting against NeMo's own, token for token.  Runs in NeMo's environment, after the oracle.

`.venv-nemo/bin/python -m tests.golden.phrase_parity --cache tests/golden/.cache tiny small prompted variant`

NeMo decodes its encoder's whole output in one batch with a tree for each stream (`GPUBiasingMultiModel`), and
each stream by itself with its tree as `boosting_tree`; our engine streams, at several batch sizes.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from common.phrases import Phrase
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.model.loading.checkpoint import read_checkpoint
from gpu_worker.steps.factory import make_model_engine
from tests.golden.clips import Clip, medleys, single_clips
from tests.golden.oracle.recipes import RECIPES

BATCH_SIZES: Final = (1, 3, 8, 32)
BOOSTS: Final = (0.5, 1.0, 2.5, 6.0)
MAX_MESSAGE_SAMPLES: Final = 40_000


@dataclass(frozen=True, slots=True)
class Case:
    """One stream: its audio, its phrases, all with one boost, and what NeMo makes of it."""

    samples: NDArray[np.float32]
    phrases: tuple[str, ...]
    boost: float
    encoded_TD: torch.Tensor


def texts(model: Any, phrase: str) -> list[str]:
    """A phrase in the cases that a model with capitals may write."""
    titled = " ".join(word.capitalize() for word in phrase.split(" "))
    cases = dict.fromkeys((phrase, phrase.lower(), phrase.capitalize(), titled))
    unknown = model.tokenizer.tokenizer.unk_id()
    return [text for text in cases if unknown not in model.tokenizer.text_to_ids(text)]


def tree_of(model: Any, case: Case) -> Any:
    """NeMo's tree of a stream's phrases."""
    from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import (
        BoostingTreeModelConfig,
        GPUBoostingTreeModel,
    )

    phrases = [text for phrase in case.phrases for text in texts(model, phrase)]
    config = BoostingTreeModelConfig(
        key_phrases_list=list(dict.fromkeys(phrases)), context_score=case.boost, use_triton=False
    )
    return GPUBoostingTreeModel.from_config(config, model.tokenizer)


def computer_of(model: Any, trees: Sequence[Any] = (), *, per_stream: bool = False) -> Any:
    """NeMo's label-looping decoder."""
    from nemo.collections.asr.parts.submodules.transducer_decoding.rnnt_label_looping import (
        GreedyBatchedRNNTLabelLoopingComputer,
    )
    from omegaconf import OmegaConf

    return GreedyBatchedRNNTLabelLoopingComputer(
        model.decoder,
        model.joint,
        blank_index=model.decoder.blank_idx,
        max_symbols_per_step=10,
        preserve_step_confidence=True,
        exclude_blank_from_confidence=True,
        confidence_method_cfg=OmegaConf.create({"name": "max_prob", "alpha": 1.0}),
        allow_cuda_graphs=False,
        fusion_models=list(trees),
        fusion_models_alpha=[1.0] * len(trees),
        enable_per_stream_biasing=per_stream,
    )


Found = list[tuple[int, int, float]]


def found_by(hypotheses: Any, row: int) -> Found:
    """Tokens, frames and confidences of a row."""
    count = int(hypotheses.current_lengths[row])
    parts = (hypotheses.transcript, hypotheses.timestamps, hypotheses.step_confidence)
    tokens, frames, confidences = (part[row, :count].tolist() for part in parts)
    return list(zip(tokens, frames, confidences, strict=True))


@torch.no_grad()
def nemo_alone(model: Any, case: Case, *, boosted: bool = True) -> Found:
    """A stream by itself, with its tree as the decoder's one."""
    computer = computer_of(model, [tree_of(model, case)] if boosted else [])
    length = torch.tensor([len(case.encoded_TD)])
    return found_by(computer(x=case.encoded_TD[None], out_len=length)[0], 0)


@torch.no_grad()
def nemo_per_stream(model: Any, cases: Sequence[Case]) -> list[Found]:
    """All streams in one batch, each with its own tree."""
    computer = computer_of(model, per_stream=True)
    ids = [computer.biasing_multi_model.add_model(tree_of(model, case), 1.0) for case in cases]
    encoded = torch.nn.utils.rnn.pad_sequence([case.encoded_TD for case in cases], batch_first=True)
    lengths = torch.tensor([len(case.encoded_TD) for case in cases])
    hypotheses = computer(x=encoded, out_len=lengths, multi_biasing_ids=torch.tensor(ids))[0]
    return [found_by(hypotheses, row) for row in range(len(cases))]


def ours(
    path: Path, context: tuple[int, int], cases: Sequence[Case], batch: int, page_frames: int
) -> list[Found]:
    """All streams in our engine, in messages of any size."""
    random = np.random.default_rng(batch)
    config = EngineConfig(
        num_slots=len(cases),
        context=context,
        batch_sizes=BatchSizes(batch, batch, batch),
        page_frames=page_frames,
        reset_at_end=False,
        turn_detection=False,
    )
    engine = make_model_engine(read_checkpoint(path), config)
    found: list[Found] = [[] for _ in cases]
    position = dict.fromkeys(range(len(cases)), 0)
    for number, case in enumerate(cases):
        phrases = tuple(Phrase(text, case.boost) for text in case.phrases)
        engine.open(StreamId(number), StreamOptions(phrases=phrases))
    while position or engine.has_work():
        for number, at in list(position.items()):
            end = at + int(random.integers(1, MAX_MESSAGE_SAMPLES))
            engine.feed(StreamId(number), cases[number].samples[at:end])
            position[number] = end
            if end >= len(cases[number].samples):
                engine.finish(StreamId(number))
                del position[number]
        for output in engine.step():
            if output.failed is not None:
                raise AssertionError(f"stream {output.stream} failed: {output.failed}")
            found[output.stream] += zip(
                output.token_ids, output.token_frames, output.confidence_scores, strict=True
            )
    return found


def check(name: str, found: Found, expected: Found) -> None:
    """Raise AssertionError for any token, frame or confidence that differs."""
    if [item[:2] for item in found] != [item[:2] for item in expected]:
        raise AssertionError(f"{name}: {found} differ from {expected}")
    if not np.allclose([item[2] for item in found], [item[2] for item in expected], atol=1e-4):
        raise AssertionError(f"{name}: confidences differ")


@torch.no_grad()
def cases_of(model: Any, clips: Sequence[Clip], repeats: int) -> list[Case]:
    """Each clip, with phrases that were said in it, phrases that were not, and of both."""
    random = np.random.default_rng(7)
    vocabulary = model.tokenizer.tokenizer
    plain = [index for index in range(len(model.tokenizer.vocab)) if index < vocabulary.get_piece_size()]
    plain = [
        index for index in plain if not vocabulary.is_control(index) and not vocabulary.is_unknown(index)
    ]
    cases = []
    for clip in clips:
        samples = torch.from_numpy(clip.samples)[None]
        mel, length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        encoded, length = model.encoder(audio_signal=mel, length=length)
        if hasattr(model, "set_inference_prompt"):
            model.set_inference_prompt("auto")
            encoded = model._apply_prompt_to_encoded(encoded)
        encoded_TD = encoded[0, :, : int(length)].transpose(0, 1).contiguous()
        alone = Case(clip.samples, (), 1.0, encoded_TD)
        said = [token for token, *_ in nemo_alone(model, alone, boosted=False)]
        for _ in range(repeats):
            phrases: list[str] = []
            while len(phrases) < 30:
                if said and random.integers(3) == 0:
                    first = int(random.integers(len(said)))
                    pieces = said[first : first + int(random.integers(1, 4))]
                    pieces += random.choice(plain, int(random.integers(0, 3))).tolist()
                else:
                    pieces = random.choice(plain, int(random.integers(1, 5))).tolist()
                text = " ".join(vocabulary.decode(pieces).split())
                marks = any(mark in text for mark in ("<", ">"))
                if text and not marks and texts(model, text)[:1] == [text]:
                    phrases.append(text)
            boost = float(random.choice(BOOSTS))
            cases.append(Case(clip.samples, tuple(dict.fromkeys(phrases)), boost, encoded_TD))
    return cases


def compare(name: str, cache: Path, context: tuple[int, int]) -> None:
    """One checkpoint and context."""
    from tests.golden.oracle.references import restore

    started = time.monotonic()
    path = cache / name / f"{name}.nemo"
    model = restore(path)
    model.encoder.set_default_att_context_size(list(context))
    trained = RECIPES[name].trained
    cases = cases_of(model, [*single_clips(), *medleys(4 if trained else 0)], 2 if trained else 1)
    expected = nemo_per_stream(model, cases)
    changed = tokens = 0
    for case, found in zip(cases, expected, strict=True):
        check(f"NeMo's two ways, {name}", nemo_alone(model, case), found)
        plain = nemo_alone(model, case, boosted=False)
        changed += [item[0] for item in plain] != [item[0] for item in found]
        tokens += len(found)
    if changed < len(cases) // 3:
        raise AssertionError(f"{name}: phrases change {changed} of {len(cases)} streams: nothing is compared")
    for batch in BATCH_SIZES if trained else (8,):
        streamed = ours(path, context, cases, batch, page_frames=16)
        for number, (found, right) in enumerate(zip(streamed, expected, strict=True)):
            check(f"{name} {context}, stream {number}, batch of {batch}", found, right)
    print(
        f"{name} {list(context)}: {tokens} tokens of {len(cases)} boosted streams equal, "
        f"{changed} of them changed by phrases, {time.monotonic() - started:.0f} s",
        flush=True,
    )


def main() -> None:
    """Compare the named checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=["tiny"])
    arguments = parser.parse_args()
    os.environ.setdefault("NEMO_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in arguments.names:
        compare(name, arguments.cache, RECIPES[name].contexts[-2 if RECIPES[name].trained else 0])


if __name__ == "__main__":
    main()
