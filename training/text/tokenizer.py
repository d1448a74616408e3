"""The tokenizer of a model that is trained from nothing: 512 unigram pieces of the labels, then `<EOU>`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from gpu_worker.model.tokenizer import END_OF_UTTERANCE

NUM_PIECES: Final = 512


def train_tokenizer(labels: Iterable[str], num_pieces: int = NUM_PIECES) -> bytes:
    """Return a serialized SentencePiece model; the last piece marks the end of an utterance."""
    import io

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(labels),
        model_writer=written,
        vocab_size=num_pieces,
        model_type="unigram",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        input_sentence_size=300_000,
        shuffle_input_sentence=True,
        minloglevel=2,
    )
    model: Any = messages.ModelProto()
    model.ParseFromString(written.getvalue())
    kind = messages.ModelProto.SentencePiece
    model.pieces.append(kind(piece=END_OF_UTTERANCE, score=0.0, type=kind.USER_DEFINED))
    return bytes(model.SerializeToString())
