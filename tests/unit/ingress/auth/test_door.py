"""Who is let in, and what a stranger is told."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key, revoke_key
from common.errors import ErrorCode, StreamError
from common.monitoring.metrics import IngressMetrics
from ingress.auth.client import ANYBODY, Client
from ingress.auth.credentials import answered_subprotocol
from ingress.auth.door import FAILURES_PER_MINUTE, Door
from ingress.auth.key_ring import KeyRing
from ingress.auth.origins import Origins
from ingress.auth.tokens import make_token
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request

HOST = ("host", "speech.example:8000")


class Entrance:
    """A door with one key, and a clock that the test sets."""

    def __init__(self, folder: Path, origins: tuple[str, ...] = ()) -> None:
        self.path = folder / "keys.json"
        self.record, self.key = create_key(self.path, KeyRecord(key_id=KeyId(""), digest="", name="desk"))
        self.metrics = IngressMetrics()
        self.now = 0.0
        self.origins = origins
        self.reload()

    def reload(self) -> None:
        self.ring = KeyRing(self.path, lambda _: None)
        self.door = Door(
            self.ring,
            Origins(self.origins),
            self.metrics,
            lambda request: request.path == "/assets/app.js",
            now=lambda: self.now,
        )

    def ask(self, *headers: tuple[str, str], path: str = "/", address: str = "192.0.2.1") -> Client | Refusal:
        try:
            return self.door.admit_request(Request("GET", path, "", (HOST, *headers), address))
        except Refused as refused:
            return refused.refusal


@pytest.fixture
def entrance(tmp_path: Path) -> Entrance:
    return Entrance(tmp_path)


def test_a_client_is_admitted_as_long_as_its_key_is_valid(entrance: Entrance) -> None:
    client = entrance.ask(("authorization", f"Bearer {entrance.key}"))
    assert isinstance(client, Client)
    assert entrance.door.still_admits(client)
    assert entrance.door.still_admits(ANYBODY)
    revoke_key(entrance.path, entrance.record.key_id)
    entrance.reload()
    assert not entrance.door.still_admits(client)
    assert entrance.door.still_admits(ANYBODY)


Headers = Callable[[str], tuple[str, str]]


@pytest.mark.parametrize(
    "header",
    [
        lambda key: ("authorization", f"Bearer {key}"),
        lambda key: ("authorization", f"bearer {key}"),
        lambda key: ("authorization", f"Token {key}"),
        lambda key: ("sec-websocket-protocol", f"token, {key}"),
        lambda key: ("sec-websocket-protocol", f"bearer, {key}"),
        lambda key: ("sec-websocket-protocol", f"token, {key}, x-deepgram-session-id, 7"),
        lambda key: ("sec-websocket-protocol", f"parakeet.v1, parakeet.auth.{key}"),
        lambda key: ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{key}"),
    ],
)
def test_a_key_opens_wherever_clients_put_it(entrance: Entrance, header: Headers) -> None:
    client = entrance.ask(header(entrance.key))
    assert isinstance(client, Client)
    assert (client.key_id, client.name) == (entrance.record.key_id, "desk")
    assert client.may("stream")
    assert not client.may("mint")
    assert isinstance(entrance.ask(header(entrance.key[:-1] + "_")), Refusal)


@pytest.mark.parametrize(
    ("headers", "reason", "sentence"),
    [
        ((), "missing", "A key is needed"),
        ((("authorization", "Basic abc"),), "malformed", "malformed"),
        ((("authorization", "Bearer"),), "malformed", "malformed"),
        ((("authorization", "Bearer " + "x" * 5000),), "malformed", "malformed"),
        ((("authorization", "Bearer pk_abcdefgh_" + "A" * 43),), "unknown", "not known"),
        ((("authorization", "Bearer nonsense"),), "unknown", "not known"),
        ((("sec-websocket-protocol", "chat"),), "missing", "A key is needed"),
    ],
)
def test_a_stranger_is_told_to_show_a_key(
    entrance: Entrance, headers: tuple[tuple[str, str], ...], reason: str, sentence: str
) -> None:
    refusal = entrance.ask(*headers)
    assert isinstance(refusal, Refusal)
    assert refusal.status == HTTPStatus.UNAUTHORIZED
    assert ("WWW-Authenticate", 'Bearer realm="parakeet"') in refusal.headers
    assert sentence in refusal.sentence
    assert entrance.metrics.auth_failures[reason] == 1


def test_a_key_in_the_query_opens_nothing(entrance: Entrance) -> None:
    with pytest.raises(Refused):
        entrance.door.admit_request(Request("GET", "/", f"token={entrance.key}", (HOST,), "192.0.2.1"))


def test_a_revoked_key_opens_nothing_and_its_tokens_neither(entrance: Entrance) -> None:
    token, _ = make_token(entrance.ring.token_secret, entrance.record.key_id, 60)
    client = entrance.ask(("authorization", f"Bearer {token}"))
    assert isinstance(client, Client)
    assert client.by_token
    revoke_key(entrance.path, entrance.record.key_id)
    entrance.reload()
    for secret in (entrance.key, token):
        refusal = entrance.ask(("authorization", f"Bearer {secret}"))
        assert isinstance(refusal, Refusal)
        assert "revoked" in refusal.sentence
    assert entrance.metrics.auth_failures["expired"] == 2


def test_a_token_opens_streams_alone(tmp_path: Path) -> None:
    entrance = Entrance(tmp_path)
    record, key = create_key(
        entrance.path,
        KeyRecord(key_id=KeyId(""), digest="", name="n", scopes=("stream", "status", "mint")),
    )
    entrance.reload()
    token, _ = make_token(entrance.ring.token_secret, record.key_id, 60)
    by_key = entrance.ask(("authorization", f"Bearer {key}"))
    by_token = entrance.ask(("authorization", f"Bearer {token}"))
    assert isinstance(by_key, Client)
    assert isinstance(by_token, Client)
    assert [by_key.may(scope) for scope in ("stream", "status", "mint")] == [True, True, True]
    assert [by_token.may(scope) for scope in ("stream", "status", "mint")] == [True, False, False]


def test_wrong_keys_of_an_address_are_bounded_and_other_addresses_are_not_held_up(entrance: Entrance) -> None:
    wrong = ("authorization", "Bearer nonsense")
    for _ in range(FAILURES_PER_MINUTE):
        assert isinstance(entrance.ask(wrong), Refusal)
    refusal = entrance.ask(wrong)
    assert isinstance(refusal, Refusal)
    assert refusal.status == HTTPStatus.TOO_MANY_REQUESTS
    assert dict(refusal.headers)["Retry-After"] == "7"
    assert entrance.metrics.auth_failures == {
        **dict.fromkeys(entrance.metrics.auth_failures, 0),
        "unknown": FAILURES_PER_MINUTE,
        "throttled": 1,
    }
    other = entrance.ask(wrong, address="192.0.2.2")
    assert isinstance(other, Refusal)
    assert other.status == HTTPStatus.UNAUTHORIZED
    entrance.now = 7.0
    again = entrance.ask(wrong)
    assert isinstance(again, Refusal)
    assert again.status == HTTPStatus.UNAUTHORIZED


def test_all_addresses_of_a_host_count_for_its_wrong_keys(entrance: Entrance) -> None:
    wrong = ("authorization", "Bearer nonsense")
    answers = [
        entrance.ask(wrong, address=f"2001:db8:0:1::{number:x}") for number in range(FAILURES_PER_MINUTE + 1)
    ]
    statuses = [answer.status for answer in answers if isinstance(answer, Refusal)]
    assert statuses == [*[HTTPStatus.UNAUTHORIZED] * FAILURES_PER_MINUTE, HTTPStatus.TOO_MANY_REQUESTS]
    last = answers[-1]
    assert isinstance(last, Refusal)
    assert dict(last.headers)["Retry-After"] == "7"
    other = entrance.ask(wrong, address="2001:db8:0:2::1")
    assert isinstance(other, Refusal)
    assert other.status == HTTPStatus.UNAUTHORIZED


def test_a_right_key_is_let_in_from_an_address_with_many_wrong_ones(entrance: Entrance) -> None:
    for _ in range(2 * FAILURES_PER_MINUTE):
        assert isinstance(entrance.ask(), Refusal)
    for _ in range(100):
        assert isinstance(entrance.ask(("authorization", f"Bearer {entrance.key}")), Client)
    assert entrance.door.admit_secret(entrance.key, "192.0.2.1").key_id == entrance.record.key_id


@pytest.mark.parametrize(
    ("origin", "allowed", "enters"),
    [
        (None, (), True),
        ("http://speech.example:8000", (), True),
        ("https://SPEECH.example:8000", (), True),
        ("http://speech.example", (), False),
        ("https://evil.example", (), False),
        ("null", (), False),
        ("https://app.example", ("https://app.example",), True),
        ("https://APP.example", ("https://app.example",), True),
        ("http://app.example", ("https://app.example",), False),
        ("https://evil.example", ("*",), True),
        ("http://[::1", (), False),
    ],
)
@pytest.mark.parametrize("with_keys", [True, False])
def test_pages_of_other_origins_are_refused(
    tmp_path: Path, origin: str | None, allowed: tuple[str, ...], enters: bool, with_keys: bool
) -> None:
    entrance = Entrance(tmp_path, allowed)
    if not with_keys:
        entrance.door = Door(None, Origins(allowed), entrance.metrics, lambda _: False)
    headers = [("authorization", f"Bearer {entrance.key}")]
    if origin is not None:
        headers.append(("origin", origin))
    answer = entrance.ask(*headers)
    assert isinstance(answer, Client) is enters
    if isinstance(answer, Refusal):
        assert answer.status == HTTPStatus.FORBIDDEN
        assert entrance.metrics.auth_failures["origin"] == 1


def test_without_keys_everybody_enters(entrance: Entrance) -> None:
    door = Door(None, Origins(()), entrance.metrics, lambda _: False)
    assert door.admit_request(Request("GET", "/", "", (HOST,), "192.0.2.1")) is ANYBODY
    assert door.admit_secret("whatever", "192.0.2.1") is ANYBODY
    assert ANYBODY.may("mint")


def test_a_stranger_gets_what_is_open_to_all(entrance: Entrance) -> None:
    assert entrance.ask(path="/assets/app.js") is ANYBODY


def test_the_first_message_of_the_tcp_port_is_judged_alike(entrance: Entrance) -> None:
    assert entrance.door.admit_secret(entrance.key, "192.0.2.1").key_id == entrance.record.key_id
    for _ in range(FAILURES_PER_MINUTE):
        with pytest.raises(StreamError, match="not known") as raised:
            entrance.door.admit_secret("wrong", "192.0.2.1")
        assert raised.value.code is ErrorCode.UNAUTHORIZED
    with pytest.raises(StreamError, match="Too many"):
        entrance.door.admit_secret("wrong", "192.0.2.1")


@pytest.mark.parametrize("secret", ["", " ", "\ud800", "pk_\ud800", "pk_\u00e9", "x" * 5000])
def test_a_secret_that_is_no_text_of_a_header_is_refused_on_the_tcp_port(
    entrance: Entrance, secret: str
) -> None:
    with pytest.raises(StreamError, match="malformed") as raised:
        entrance.door.admit_secret(secret, "192.0.2.1")
    assert raised.value.code is ErrorCode.UNAUTHORIZED
    assert entrance.metrics.auth_failures["malformed"] == 1


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        ([], None),
        (["token", "pk_x"], "token"),
        (["bearer", "t"], "bearer"),
        (["parakeet.v1", "parakeet.auth.k"], "parakeet.v1"),
        (["parakeet.auth.k", "parakeet.v1"], "parakeet.v1"),
        (["openai-insecure-api-key.k", "realtime"], "realtime"),
        (["chat", "other"], "chat"),
        (["parakeet.auth.k"], None),
    ],
)
def test_the_answer_never_repeats_a_secret(offered: list[str], answered: str | None) -> None:
    assert answered_subprotocol(offered) == answered
