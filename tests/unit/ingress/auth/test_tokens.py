"""Temporary tokens: what one ingress signs another accepts, and nothing else opens anything."""

from __future__ import annotations

import time

import jwt
import pytest

from common.auth.api_key import KeyId
from ingress.auth.tokens import MAX_TTL_S, BadToken, make_token, read_token

SECRET = "a-secret-that-all-ingresses-share-by-the-keys-file"
KEY = KeyId("abcdefgh")


def test_a_token_tells_whose_it_is_and_until_when() -> None:
    text, expires_s = make_token(SECRET, KEY, 60)
    token = read_token(SECRET, text)
    assert (token.key_id, token.expires_s) == (KEY, expires_s)
    assert 58 <= expires_s - time.time() <= 60


def test_a_token_holds_a_session_of_bounded_length() -> None:
    text, _ = make_token(SECRET, KEY, 60, session='{"type":"transcription"}')
    assert read_token(SECRET, text).session == '{"type":"transcription"}'
    assert read_token(SECRET, make_token(SECRET, KEY, 60)[0]).session == ""
    with pytest.raises(ValueError, match="at most"):
        make_token(SECRET, KEY, 60, session="x" * 4000)


def test_a_token_ends() -> None:
    text, _ = make_token(SECRET, KEY, 30, now_s=time.time() - 31)
    with pytest.raises(BadToken) as raised:
        read_token(SECRET, text)
    assert raised.value.expired


@pytest.mark.parametrize("ttl_s", [0, -1, MAX_TTL_S + 1])
def test_a_token_lives_for_a_bounded_time(ttl_s: int) -> None:
    with pytest.raises(ValueError, match="lives 1 to"):
        make_token(SECRET, KEY, ttl_s)


def signed(claims: dict[str, object], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


GOOD = {"aud": "parakeet", "sub": str(KEY), "exp": 1 << 40}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x.y.z",
        "pk_abcdefgh_" + "A" * 43,
        signed(GOOD, "another-secret-that-is-also-long-enough-for-hs256"),
        signed(GOOD)[:-2],
        signed({**GOOD, "aud": "others"}),
        signed({"sub": str(KEY), "aud": "parakeet"}),
        signed({"exp": 1 << 40, "aud": "parakeet"}),
        signed({**GOOD, "sub": "../etc"}),
        jwt.encode(GOOD, None, algorithm="none"),  # type: ignore[arg-type]
        signed(GOOD, SECRET * 2, "HS512"),
        signed({**GOOD, "padding": "x" * 4000}),
        signed({**GOOD, "session": {"type": "transcription"}}),
    ],
)
def test_what_was_not_signed_here_opens_nothing(text: str) -> None:
    with pytest.raises(BadToken) as raised:
        read_token(SECRET, text)
    assert not raised.value.expired


def test_the_same_claims_signed_here_are_accepted() -> None:
    assert read_token(SECRET, signed(GOOD)).key_id == KEY
