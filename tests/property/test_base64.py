"""The fast base64 decoder takes exactly what Python's strict one takes, and returns the same bytes."""

from __future__ import annotations

import binascii

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from common.client_codec import decode_base64

_ALPHABET = "ABCDabcd0189+/==-_ \n\té"


def _strict(text: str) -> bytes | None:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


@given(
    st.one_of(
        st.text(_ALPHABET, max_size=16),
        st.tuples(st.binary(max_size=60), st.integers(0, 80), st.text(_ALPHABET, max_size=2)).map(
            lambda parts: _with_change(*parts)
        ),
    )
)
@settings(max_examples=1000)
@example("")
@example("====")
@example("AA=A")
@example("AAAA====")
def test_both_decoders_agree(text: str) -> None:
    expected = _strict(text)
    if expected is None:
        with pytest.raises(ValueError):
            decode_base64(text)
    else:
        assert decode_base64(text) == expected


def _with_change(payload: bytes, at: int, put: str) -> str:
    text = binascii.b2a_base64(payload, newline=False).decode()
    return text[:at] + put + text[at + len(put) :]
