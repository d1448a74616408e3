"""Deepgram's dialect, whatever its clients send: queries are read or refused, frames taken or told."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from common.errors import ClientFault
from common.messages import Audio, Utterance, Word
from ingress.dialects.deepgram.dialect import DeepgramDialect
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.deepgram.segment import Segments
from ingress.http.refusal import Refusal, Refused
from tests.fake_backplane import some_result

_NAMES = st.sampled_from(
    (
        "encoding",
        "sample_rate",
        "channels",
        "multichannel",
        "interim_results",
        "endpointing",
        "utterance_end_ms",
        "vad_events",
        "keyterm",
        "keywords",
        "language",
        "redact",
        "no_delay",
    )
)
_VALUES = st.one_of(
    st.sampled_from(
        ("linear16", "mulaw", "opus", "true", "false", "16000", "8", "1", "0", "-1", "a:2", "a:nan")
    ),
    st.text(max_size=20),
)
_SAMPLE_BYTES = {"linear16": 2, "linear32": 4, "mulaw": 1, "alaw": 1}


@given(fields=st.lists(st.tuples(_NAMES, _VALUES), max_size=6), raw=st.text(max_size=20))
def test_any_query_is_read_or_refused_in_shape(fields: list[tuple[str, str]], raw: str) -> None:
    text = "&".join(f"{name}={quote(value)}" for name, value in fields)
    for query in (text, raw.encode().decode("latin-1")):
        refusal = _refusal_of(query)
        if refusal is not None:
            assert refusal.answer().startswith(b"HTTP/1.1 400 ")
            assert set(json.loads(refusal.content)) == {"err_code", "err_msg", "request_id"}


def _refusal_of(query: str) -> Refusal | None:
    try:
        asked = parse_listen_query(query)
    except Refused as refused:
        return refused.refusal
    assert DeepgramDialect(asked).num_streams in range(1, 9)
    return None


@given(
    frames=st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=12),
    encoding=st.sampled_from(sorted(_SAMPLE_BYTES)),
    channels=st.integers(1, 3),
    apart=st.booleans(),
)
def test_any_frame_is_taken_or_told(
    frames: list[tuple[bool, bytes]], encoding: str, channels: int, apart: bool
) -> None:
    query = f"encoding={encoding}&sample_rate=8000&channels={channels}&multichannel={str(apart).lower()}"
    dialect = DeepgramDialect(parse_listen_query(query))
    sent = heard = 0
    for binary, data in (*frames, (True, b"")):  # a mix keeps samples until the end
        if not binary:
            messages = dialect.decode_text(data)
        else:
            sent += len(data)
            try:
                messages = dialect.decode_binary(data)
            except ClientFault:  # no number, or a container
                return
        for message in messages if isinstance(messages, list) else (messages,):
            heard += message.num_samples if isinstance(message, Audio) else 0
    whole = sent // (_SAMPLE_BYTES[encoding] * channels)
    assert heard == (whole * channels if apart else whole)
    assert all(json.loads(reply.data)["type"] for reply in dialect.replies)


@given(
    words=st.lists(st.sampled_from(("go", "on", "ten.", "No,", "a")), max_size=30),
    cuts=st.sets(st.integers(0, 30)),
    finalized=st.sets(st.integers(0, 30)),
)
@settings(max_examples=200)
def test_finals_tile_the_audio_and_join_to_the_text(
    words: list[str], cuts: set[int], finalized: set[int]
) -> None:
    segments = Segments()
    said: list[str] = []
    told: list[str] = []
    ends = [0.0]
    open_from = 0
    for number, text in enumerate([*words, ""]):
        last = number == len(words)
        heard_s = (number + 1) * 0.5
        new = () if last else (Word(text, heard_s - 0.4, heard_s - 0.1, 0.9),)
        said += [text] if text else []
        utterances: tuple[Utterance, ...] = ()
        ends_here = last or number in finalized
        if number in cuts and not ends_here:
            utterances = (Utterance(1, " ".join(said[open_from:]), 0.0, heard_s - 0.1),)
        result = some_result(number + 1, " ".join(said), words=new, utterances=utterances, final=last)
        if number in finalized and not last:
            result = replace(result, from_finalize=True)
        if utterances or ends_here:
            open_from = len(said)
        for segment in segments.add(result, heard_s):
            if segment.is_final:
                assert segment.start_s == pytest.approx(ends[-1])
                assert segment.end_s >= segment.start_s
                ends.append(segment.end_s)
                told += [segment.transcript] if segment.transcript else []
    assert " ".join(told) == " ".join(said)
    assert ends[-1] == pytest.approx((len(words) + 1) * 0.5)
