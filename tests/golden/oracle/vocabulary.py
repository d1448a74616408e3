"""SentencePiece models of a wanted size, grown from the bundled tiny model's pieces."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

TINY_TOKENIZER = (
    Path(__file__).resolve().parents[3]
    / "gpu_worker" / "model" / "bundled" / "tiny" / "tokenizer.model"
)  # fmt: skip
# Generated code: its classes are made at run time.
sentencepiece_proto: Any = sentencepiece_model_pb2
SPACE = "\u2581"
PUNCTUATION = (".", ",", "?", "!", "'", "-")


def make_tokenizer(num_pieces: int, marks: tuple[str, ...], *, punctuation: bool) -> bytes:
    """Serialize a model of `num_pieces` plain pieces followed by `marks` (user-defined pieces)."""
    model = sentencepiece_proto.ModelProto()
    model.ParseFromString(TINY_TOKENIZER.read_bytes())
    plain = [piece for piece in model.pieces if piece.type != piece.USER_DEFINED]
    names = [piece.piece for piece in plain]
    del model.pieces[:]
    wanted = list(names[:num_pieces])
    known = set(wanted)
    for name in itertools.chain(PUNCTUATION if punctuation else (), _more(names, capitals=punctuation)):
        if len(wanted) >= num_pieces:
            break
        if name not in known:
            wanted.append(name)
            known.add(name)
    if len(wanted) != num_pieces:
        raise ValueError(f"only {len(wanted)} pieces could be made, {num_pieces} are wanted")
    for index, name in enumerate(wanted):
        kind = plain[0].type if index == 0 else plain[1].type
        model.pieces.add(piece=name, score=-float(index), type=kind)
    for mark in marks:
        model.pieces.add(
            piece=mark, score=0.0, type=sentencepiece_proto.ModelProto.SentencePiece.USER_DEFINED
        )
    model.trainer_spec.vocab_size = len(model.pieces)
    data: bytes = model.SerializeToString()
    return data


def _more(names: list[str], *, capitals: bool) -> list[str]:
    words = [name for name in names if name.startswith(SPACE) and len(name) > 2]
    more = [SPACE + name[1:].capitalize() for name in words] if capitals else []
    more += [name + end for end in ("s", "ed", "ing", "er", "ly") for name in words]
    return more
