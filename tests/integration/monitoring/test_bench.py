"""The bench on a real server: what it counts is what was sent and received."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from parakeet.bench.command import main
from tests.certificates import Authority
from tests.ingress_process import IngressProcess
from tests.servers import raw_client
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.one_server


@pytest.mark.parametrize("transport", ["websocket", "binary", "tcp", "wss", "tcps"])
def test_every_stream_is_played_and_measured(
    redis_url: str, tmp_path: Path, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = raw_client(redis_url)
    report = tmp_path / "report.json"
    flags: dict[str, Any] = {}
    shown: list[str] = []
    if transport in ("wss", "tcps"):
        authority, keys = Authority(tmp_path), tmp_path / "keys.json"
        certificate = authority.sign()
        _, key = create_key(keys, KeyRecord(key_id=KeyId(""), digest="", name="bench"))
        flags = {"tls_cert": certificate.certificate, "tls_key": certificate.key, "auth_keys_file": keys}
        shown = ["--tls-ca", str(authority.certificate), "--api-key", key]
    with (
        WorkerProcess(redis_url, "w-1", tmp_path / "w-1.log") as worker,
        IngressProcess(redis_url, "i-1", tmp_path / "i-1.log", **flags) as ingress,
    ):
        worker.ready(client)
        ingress.ready(client)
        scheme = "ws" if transport == "binary" else transport.replace("websocket", "ws")
        port = ingress.port if scheme.startswith("tcp") else ingress.ws_port
        main(
            [
                *(f"{scheme}://127.0.0.1:{port}", "--streams", "6", "--duration-s", "3", "--ramp-s", "1"),
                *("--processes", "2", "--redis-url", redis_url, "--backend", "null", "--json", str(report)),
                *(["--binary"] if transport == "binary" else []),
                *shown,
            ]
        )
    client.close()
    written = report.read_text()
    assert "pk_" not in written
    (trial,) = json.loads(written)["trials"]
    assert trial["errors"] == {}
    assert trial["streams_finished"] == 6
    assert trial["messages_sent"] == 6 * 19  # 3 s in messages of 160 ms
    assert trial["timed_chunks"] == 6 * 19
    assert trial["results"] == 6 * 20  # one a chunk, and the final
    assert trial["final"]["count"] == 6
    assert 0 < trial["latency_all"]["p50_ms"] <= trial["latency_all"]["p99_ms"]
    assert {part["role"] for part in trial["parts"]} >= {"ingress", "worker", "bench"}
    assert trial["redis"]["commands"]["xadd"][0] > 0
    assert "pass" in capsys.readouterr().out or trial["failures"]


def test_a_server_that_refuses_is_counted_by_its_own_codes(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    report = tmp_path / "report.json"
    with (
        WorkerProcess(redis_url, "w-1", tmp_path / "w-1.log") as worker,
        IngressProcess(redis_url, "i-1", tmp_path / "i-1.log", max_num_streams=2) as ingress,
    ):
        worker.ready(client)
        ingress.ready(client)
        status = main(
            [
                *(ingress.ws_url, "--streams", "4", "--duration-s", "3", "--ramp-s", "0.5"),
                *("--redis-url", redis_url, "--json", str(report)),
            ]
        )
    client.close()
    (trial,) = json.loads(report.read_text())["trials"]
    assert status == 1
    assert trial["streams_finished"] == 2
    assert trial["errors"] == {"no_free_stream": 2}
    assert trial["passed"] is False
