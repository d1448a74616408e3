"""A stranger without a key, and a page of a foreign origin, get nothing but the page.

What there is to get is taken from the tables of a site of an ingress with the same flags, so that whatever is
added to them is asked for here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import psutil
import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from common.client_codec import CLIENT_MESSAGE_TYPES
from common.settings import parse
from ingress.api.page import is_open
from ingress.http.site import Site
from ingress.request import Request
from ingress.server import IngressServer
from tests.ingress_process import IngressProcess
from tests.ports import HOST, free_ports
from tests.stack import Stack

pytestmark = pytest.mark.one_server

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WRONG_KEY = "pk_abcdefgh_" + "A" * 43
# An address of this machine that is not the one which loopback ports listen on.
ELSEWHERE = "127.0.0.2"
# Without these a message is no message.
FIELDS: dict[str, dict[str, object]] = {
    "auth": {"token": WRONG_KEY},
    "audio": {"data": "AAAAAAAA"},
    "phrases": {"phrases": ["parakeet"]},
    "resume": {"stream_id": 1, "resume_token": "t", "last_seq": 0, "audio_ack_samples": 0},
}
FOREIGN = {"Origin": "https://evil.example"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@dataclass(frozen=True)
class Asked:
    """One request of the table: a method and a path, or an upgrade to WebSocket."""

    method: str
    path: str
    upgrade: bool = False

    @property
    def is_for_all(self) -> bool:
        headers = tuple((name.lower(), value) for name, value in UPGRADE.items()) if self.upgrade else ()
        return is_open(Request(self.method, self.path.partition("?")[0], "", headers, ""))


@dataclass(frozen=True)
class Guarded:
    """A running ingress with keys, and one of them."""

    ingress: IngressProcess
    key: str
    metrics_port: int
    flags: tuple[str, ...]

    @property
    def site(self) -> Site:
        """The tables of streams and endpoints that such an ingress has."""
        return IngressServer(parse("ingress", self.flags, {}))._site

    @property
    def stream_paths(self) -> set[str]:
        """Paths at which a WebSocket is a stream."""
        return set(self.site.streams)

    def table(self) -> list[Asked]:
        """All that there is, what takes a name with one, and what is not there."""
        site = self.site
        paths = {re.sub(r"\{[^}]*\}", "name", route.path) for route in site.endpoints}
        paths |= {"/nothing-here", *site.streams}
        asked = [Asked(method, path) for path in sorted(paths) for method in METHODS]
        return asked + [Asked("GET", path, upgrade=True) for path in sorted(paths)]

    def ask(self, asked: Asked, headers: Mapping[str, str], query: str = "") -> tuple[int, bytes]:
        """The status and the body of an answer."""
        all_headers = {**headers, **(UPGRADE if asked.upgrade else {})}
        with closing(HTTPConnection(HOST, self.ingress.ws_port, timeout=60)) as connection:
            connection.request(asked.method, asked.path + query, b"" if asked.upgrade else None, all_headers)
            response: HTTPResponse = connection.getresponse()
            return response.status, b"" if response.status == 101 else response.read()


@pytest.fixture
def guarded(stack: Stack, tmp_path: Path) -> Guarded:
    keys = tmp_path / "keys.json"
    _, key = create_key(
        keys, KeyRecord(key_id=KeyId(""), digest="", name="desk", scopes=("stream", "status", "mint"))
    )
    (metrics_port,) = free_ports(1)
    stack.worker()
    ingress = stack.ingress(host="0.0.0.0", auth_keys_file=str(keys), metrics_port=metrics_port)
    return Guarded(ingress, key, metrics_port, ("--auth-keys-file", str(keys)))


async def test_a_stranger_gets_nothing_at_any_path(guarded: Guarded, stack: Stack) -> None:
    table = guarded.table()
    assert guarded.stream_paths <= {one.path for one in table if one.upgrade}
    assert {"/v1/audio/transcriptions", "/v1/models/name", "/v1/tokens"} <= {one.path for one in table}
    shown: list[tuple[dict[str, str], str]] = [
        ({}, ""),
        ({"Authorization": f"Bearer {WRONG_KEY}"}, ""),
        ({"Authorization": "Basic eDp5"}, ""),
        ({"Authorization": f"Token {guarded.key[:-1]}"}, ""),
        ({"Sec-WebSocket-Protocol": f"token, {WRONG_KEY}"}, ""),
        ({}, f"?token={guarded.key}&api_key={guarded.key}"),
    ]
    for asked in table:
        for headers, query in shown:
            status, body = await asyncio.to_thread(guarded.ask, asked, headers, query)
            if asked.is_for_all:
                assert status in (200, 404), (asked, status)
                continue
            # 429 once there were too many of them.
            assert status in (401, 429), (asked, headers, status, body)
            assert guarded.key.encode() not in body
            assert len(body) < 400, body
    assert stack.client.zcard("px:{0}:adm") == 0
    assert stack.client.xlen("px:{0}:new") == 0


async def test_a_foreign_page_gets_nothing_even_with_a_key(guarded: Guarded, stack: Stack) -> None:
    key = {"Authorization": f"Bearer {guarded.key}"}
    for asked in guarded.table():
        status, body = await asyncio.to_thread(guarded.ask, asked, {**key, **FOREIGN})
        if asked.is_for_all:
            assert status in (200, 404), (asked, status)
        else:
            assert status == 403, (asked, status, body)
        # The same from elsewhere is not refused for who asks: what is tested above is there.
        status, body = await asyncio.to_thread(guarded.ask, asked, key)
        assert status not in (401, 403, 429), (asked, status, body)
        if asked.upgrade and asked.path in guarded.stream_paths:
            assert status == 101, (asked, body)
    await stack.empty()


async def test_over_tcp_no_message_is_heard_before_the_key(guarded: Guarded) -> None:
    for kind in sorted(CLIENT_MESSAGE_TYPES):
        reader, writer = await asyncio.open_connection(HOST, guarded.ingress.port)
        writer.write(json.dumps({"type": kind, **FIELDS.get(kind, {})}).encode() + b"\n")
        async with asyncio.timeout(60):
            told = await reader.read()
        error = json.loads(told)
        assert (error["type"], error["code"]) == ("error", "unauthorized"), (kind, told)
        assert "stream_id" not in error or error["stream_id"] is None
        writer.close()


async def test_only_the_client_ports_are_open_to_other_machines(guarded: Guarded) -> None:
    process = psutil.Process(guarded.ingress.pid)
    open_ports = [one.laddr.port for one in process.net_connections("inet") if one.status == "LISTEN"]
    ingress = guarded.ingress
    assert set(open_ports) == {ingress.port, ingress.ws_port, ingress.status_port, guarded.metrics_port}
    for port in open_ports:
        if port in (ingress.port, ingress.ws_port):
            _, writer = await asyncio.open_connection(ELSEWHERE, port)
            writer.close()
        else:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(ELSEWHERE, port)
