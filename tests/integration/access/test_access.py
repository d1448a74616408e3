"""Keys, limits and TLS of real ingresses, over every way in."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.certificates import Authority
from tests.clients.checker import shape
from tests.ingress_process import IngressProcess
from tests.integration.access.keyed_ingress import AUDIO, Keys, Tcp, serve
from tests.ports import HOST
from tests.realtime_talk import TRANSCRIPTION, append
from tests.stack import Stack

pytestmark = pytest.mark.one_server


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


async def test_over_tcp_the_key_comes_first_and_hello_behind_it(stack: Stack, keys: Keys) -> None:
    _, key = keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    async with Tcp.open(ingress.port) as client:
        await client.send(type="auth", token=key)
        hello = await client.receive()
        assert hello is not None
        assert hello["type"] == "hello"
        assert await client.text()
    await stack.empty()


@pytest.mark.parametrize(
    "first",
    [
        {"type": "ping"},
        AUDIO,
        {"type": "config"},
        {"type": "close"},
        {"type": "auth", "token": "pk_abcdefgh_" + "A" * 43},
        {"type": "auth", "token": ""},
    ],
)
async def test_over_tcp_a_stranger_gets_unauthorized_and_the_end(
    stack: Stack, keys: Keys, first: dict[str, Any]
) -> None:
    keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    async with Tcp.open(ingress.port) as client:
        await client.send(**first)
        error = await client.receive()
        assert error is not None
        assert error["code"] == "unauthorized"
        assert await client.receive() is None
    assert stack.client.zcard("px:{0}:adm") == 0


async def test_a_stranger_that_says_nothing_is_hung_up_on(stack: Stack, keys: Keys) -> None:
    keys.make()
    stack.worker()
    ingress = serve(stack, keys, begin_timeout_s=0.3)
    async with Tcp.open(ingress.port) as client:
        error = await client.receive()
        assert error is not None
        assert error["code"] == "unauthorized"
        assert await client.receive() is None


async def test_without_keys_a_key_does_no_harm(stack: Stack, keys: Keys) -> None:
    _, key = keys.make()
    stack.worker()
    ingress = stack.ingress()
    async with Tcp.open(ingress.port) as client:
        await client.send(type="auth", token=key)
        assert (await client.receive() or {})["type"] == "hello"
        assert await client.text()


@pytest.mark.parametrize("by", ["header", "subprotocol"])
async def test_over_websocket_a_key_opens_before_the_upgrade(stack: Stack, keys: Keys, by: str) -> None:
    _, key = keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    headers = {"Authorization": f"Bearer {key}"} if by == "header" else None
    offered = [Subprotocol(name) for name in ("parakeet.v1", f"parakeet.auth.{key}")]
    async with connect(
        ingress.ws_url, additional_headers=headers, subprotocols=offered if by == "subprotocol" else None
    ) as client:
        assert json.loads(await client.recv())["type"] == "hello"
        assert client.subprotocol == ("parakeet.v1" if by == "subprotocol" else None)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Origin": "https://evil.example"}, 403)],
)
async def test_a_stranger_is_refused_before_the_upgrade(
    stack: Stack, keys: Keys, headers: dict[str, str], status: int
) -> None:
    keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    with pytest.raises(InvalidStatus) as raised:
        await connect(ingress.ws_url, additional_headers=headers)
    assert raised.value.response.status_code == status
    assert stack.client.zcard("px:{0}:adm") == 0
    http = HTTPConnection(HOST, ingress.ws_port, timeout=60)
    http.request("GET", "/v1/anything", headers=headers)
    assert http.getresponse().status == status
    http.close()


async def test_a_name_that_was_bent_to_this_server_opens_nothing_for_its_page(stack: Stack) -> None:
    """DNS rebinding: the page's own host, by the browser's book, on a server without keys."""
    stack.worker()
    ingress = stack.ingress()

    async def opened(name: str) -> ClientConnection:
        at = f"{name}:{ingress.ws_port}"
        return await connect(f"ws://{at}/", host=HOST, additional_headers={"Origin": f"http://{at}"})

    with pytest.raises(InvalidStatus) as raised:
        await opened("evil.example")
    assert raised.value.response.status_code == 403
    assert b"--allowed-hosts" in (raised.value.response.body or b"")
    http = HTTPConnection(HOST, ingress.ws_port, timeout=60)
    at = f"evil.example:{ingress.ws_port}"
    http.request("POST", "/v1/listen", b"RIFF", headers={"Host": at, "Origin": f"http://{at}"})
    assert http.getresponse().status == 403
    http.close()
    for name in ("127.0.0.1", "localhost"):
        client = await opened(name)
        assert json.loads(await client.recv())["type"] == "hello"
        await client.close()


@pytest.mark.parametrize("path", ["/v1/listen", "/v1/realtime?intent=transcription"])
async def test_other_protocols_get_429_before_the_upgrade_too(stack: Stack, keys: Keys, path: str) -> None:
    _, key = keys.make(max_streams=1)
    stack.worker()
    ingress = serve(stack, keys)
    headers = {"Authorization": f"Bearer {key}"}
    async with connect(ingress.ws_url, additional_headers=headers) as client:
        assert json.loads(await client.recv())["type"] == "hello"
        with pytest.raises(InvalidStatus) as raised:
            await connect(ingress.ws_url + path, additional_headers=headers)
        response = raised.value.response
        assert response.status_code == 429
        assert response.headers.get_all("Retry-After") == ["5"]
        assert stack.client.zcard("px:{0}:adm") == 1


async def test_a_stranger_sees_the_page_and_nothing_else(stack: Stack, keys: Keys) -> None:
    keys.make()
    ingress = serve(stack, keys)
    for path, status in (("/", 200), ("/assets/app.js", 200), ("/v1/tokens", 401), ("/ws", 401)):
        http = HTTPConnection(HOST, ingress.ws_port, timeout=60)
        http.request("GET", path)
        assert http.getresponse().status == status, path
        http.close()


async def test_a_stream_is_resumed_with_its_own_key_alone(stack: Stack, keys: Keys) -> None:
    _, key = keys.make()
    _, other = keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    async with connect(ingress.ws_url, additional_headers={"Authorization": f"Bearer {key}"}) as client:
        hello = json.loads(await client.recv())
        await client.send(json.dumps({"type": "config", "resume": True}))
        await client.send(json.dumps(AUDIO))
        await client.recv()
        client.transport.abort()
    resume = {
        "type": "resume",
        "stream_id": hello["stream_id"],
        "resume_token": hello["resume_token"],
        "last_seq": 0,
        "audio_ack_samples": 0,
    }

    async def answer(secret: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {secret}"}
        async with connect(ingress.ws_url, additional_headers=headers) as again:
            await again.recv()
            await again.send(json.dumps(resume))
            async with asyncio.timeout(90):
                message: dict[str, Any] = json.loads(await again.recv())
            return message

    assert (await answer(other))["code"] == "resume_refused"
    assert (await answer(key))["type"] == "resumed"


def posted(ingress: IngressProcess, path: str, key: str, body: object) -> tuple[int, dict[str, Any]]:
    """Return the status and the fields of an answer."""
    http = HTTPConnection(HOST, ingress.ws_port, timeout=60)
    http.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {key}"})
    response = http.getresponse()
    answer = response.status, json.loads(response.read() or b"{}")
    http.close()
    return answer


async def test_a_browser_gets_a_temporary_token_from_who_may_make_them(stack: Stack, keys: Keys) -> None:
    _, minting = keys.make(scopes=("stream", "mint"))
    _, plain = keys.make()
    stack.worker()
    ingress = serve(stack, keys)

    def post(path: str, key: str, body: object) -> tuple[int, dict[str, Any]]:
        return posted(ingress, path, key, body)

    assert post("/v1/tokens", plain, {})[0] == 403
    assert post("/v1/tokens", minting, {"ttl_seconds": 100_000})[0] == 400
    tokens = [
        post("/v1/tokens", minting, {"ttl_seconds": 60})[1]["token"],
        post("/v1/auth/grant", minting, {})[1]["access_token"],
        post("/v1/realtime/client_secrets", minting, {"session": {"type": "transcription"}})[1]["value"],
    ]
    for token in tokens:
        offered = [Subprotocol(name) for name in ("bearer", token)]
        async with connect(ingress.ws_url, subprotocols=offered) as client:
            assert json.loads(await client.recv())["type"] == "hello"
        assert post("/v1/tokens", token, {})[0] == 403


async def test_a_client_secret_opens_the_session_that_it_was_made_for(stack: Stack, keys: Keys) -> None:
    _, minting = keys.make(scopes=("stream", "mint"))
    stack.worker()
    ingress = serve(stack, keys)
    url = f"{ingress.ws_url}/v1/realtime"
    fields = {"format": {"type": "audio/pcmu"}, "turn_detection": None, "transcription": {"language": "en"}}
    asked = {"type": "transcription", "audio": {"input": fields}}
    secret = posted(ingress, "/v1/realtime/client_secrets", minting, {"session": asked})[1]
    assert list(shape("openai_realtime", "session", secret["session"])) == []
    beta = {"input_audio_format": "g711_ulaw", "turn_detection": None}
    old = posted(ingress, "/v1/realtime/transcription_sessions", minting, beta)[1]
    assert old["input_audio_format"] == "g711_ulaw"
    for value in (secret["value"], old["client_secret"]["value"]):
        offered = [Subprotocol(name) for name in ("realtime", f"openai-insecure-api-key.{value}")]
        async with connect(url, subprotocols=offered) as client:
            assert client.subprotocol == "realtime"
            created = json.loads(await client.recv())
            assert created["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu"}
            # Without a `session.update`, audio is taken at once, and as the secret says.
            for said in (append(b"\xff" * 1600), {"type": "input_audio_buffer.commit"}):
                await client.send(json.dumps(said))
            async with asyncio.timeout(90):
                while (event := json.loads(await client.recv()))["type"] != f"{TRANSCRIPTION}.completed":
                    pass
            assert event["usage"]["seconds"] == 0.2
    for wrong, param in (
        ({"session": {"type": "realtime"}}, "session.type"),
        ({"expires_after": {"seconds": 0}}, "expires_after.seconds"),
    ):
        status, answer = posted(ingress, "/v1/realtime/client_secrets", minting, wrong)
        assert (status, answer["error"]["param"]) == (400, param)
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, additional_headers={"Authorization": "Bearer pk_wrong"})
    response = refused.value.response
    assert response.status_code == 401
    assert json.loads(response.body or b"")["error"]["code"] == "invalid_api_key"


async def test_tls_on_both_client_ports(stack: Stack, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.sign()
    stack.worker()
    ingress = stack.ingress(tls_cert=str(files.certificate), tls_key=str(files.key))
    trusting = ssl.create_default_context(cafile=authority.certificate)
    async with Tcp.open(ingress.port, trusting) as client:
        assert (await client.receive() or {})["type"] == "hello"
        assert await client.text()
    address = f"wss://localhost:{ingress.ws_port}"
    async with connect(address, ssl=trusting, host=HOST) as socket:
        assert json.loads(await socket.recv())["type"] == "hello"
        await socket.send(json.dumps({**AUDIO, "final": True}))
        async with asyncio.timeout(90):
            while not json.loads(await socket.recv()).get("is_final"):
                pass
            with pytest.raises(ConnectionClosed) as raised:
                await socket.recv()
        assert raised.value.rcvd is not None
        assert raised.value.rcvd.code == 1000
    async with Tcp.open(ingress.port) as plain:
        await plain.send(type="ping")
        # The server answers in TLS, or resets the connection.
        with suppress(ConnectionError):
            assert b"hello" not in await plain.reader.read()
    await stack.empty()
