"""One trace a stream, through an ingress, Redis and its workers, as a collector receives it."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from websockets.asyncio.client import connect

from parakeet.client import connect as open_stream
from tests.integration.monitoring.test_stream_ends import wav
from tests.ports import HOST
from tests.stack import TIMEOUTS, Stack
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS

pytestmark = pytest.mark.one_server

AUDIO = bytes(32_000)
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Receives spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_process in request.resource_spans:
            facts = {one.key: one.value.string_value for one in of_process.resource.attributes}
            for scope in of_process.scope_spans:
                for span in scope.spans:
                    values = {
                        one.key: one.value.string_value or one.value.int_value for one in span.attributes
                    }
                    self.spans.append(
                        {
                            "service": facts["service.name"],
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "events": [event.name for event in span.events],
                            **values,
                        }
                    )

    def of(self, trace: str) -> list[dict[str, Any]]:
        """Spans of a trace, the ingress's first."""
        return sorted((one for one in self.spans if one["trace"] == trace), key=lambda one: one["service"])


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


async def test_a_stream_is_one_trace_through_all_that_serve_it(stack: Stack, collector: Collector) -> None:
    stack.worker("w-1", trace_endpoint=collector.url)
    ingress = stack.ingress(trace_endpoint=collector.url)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with connect(ingress.ws_url, additional_headers=headers) as client:
        hello = json.loads(await client.recv())
        for _ in range(20):
            await client.send(AUDIO)
        await client.send(json.dumps({"type": "close"}))
        async for _ in client:
            pass
    await until(lambda: len(collector.of(TRACE)) >= 2, what="two spans")
    served, owned = collector.of(TRACE)
    assert (served["service"], served["name"]) == ("parakeet-ingress", "stream")
    assert served["parent"] == PARENT
    events = served["events"]
    assert sorted(events) == ["claimed", "end_of_audio", "final", "first_text"]
    # All of the audio may have come before its worker.
    assert events.index("claimed") < events.index("first_text") < events.index("final") == 3
    assert (served["stream_id"], served["code"]) == (hello["stream_id"], "final")
    assert (owned["service"], owned["name"]) == ("parakeet-worker", "own")
    assert owned["parent"] == served["id"]
    assert (owned["stream_id"], owned["epoch"], owned["worker_id"]) == (hello["stream_id"], 1, "w-1")
    assert owned["decoded_samples"] == 20 * 16_000
    # Whoever sends nothing has a trace of its own; whoever is not sampled has none.
    async with await open_stream(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        await stream.send(AUDIO)
        await stream.finish()
        await stream.final()
    await until(lambda: len(collector.spans) >= 4, what="two further spans")
    assert len({one["trace"] for one in collector.spans}) == 2
    quiet = {"traceparent": f"00-{TRACE[::-1]}-{PARENT}-00"}
    async with connect(ingress.ws_url, additional_headers=quiet) as client:
        await client.recv()
        await client.send(AUDIO)
        await client.send(json.dumps({"type": "close"}))
        async for _ in client:
            pass

    def upload() -> int:
        with closing(HTTPConnection(HOST, ingress.ws_port, timeout=60)) as connection:
            context = {"traceparent": f"00-{'1' * 32}-{PARENT}-01"}
            connection.request("POST", "/v1/listen", wav(AUDIO), context)
            return connection.getresponse().status

    assert await asyncio.to_thread(upload) == 200
    await until(lambda: len(collector.of("1" * 32)) >= 2, what="the spans of an upload")
    assert len(collector.spans) == 6
    await stack.empty()


async def test_a_takeover_is_another_span_of_the_same_trace(stack: Stack, collector: Collector) -> None:
    first = stack.worker("w-1", trace_endpoint=collector.url, lease_ms=SHORT_LEASE_MS)
    ingress = stack.ingress(trace_endpoint=collector.url)
    async with await open_stream(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        await stream.send(AUDIO)
        await anext(aiter(stream.results()))
        stack.worker("w-2", trace_endpoint=collector.url)
        first.send(signal.SIGKILL)
        first.wait()
        await stream.send(AUDIO)
        await stream.finish()
        await stream.final()

    def spans() -> list[dict[str, Any]]:
        """The ingress's, and the second worker's; whether the first lived to send one does not matter."""
        ingresses = [one for one in collector.spans if one["service"] == "parakeet-ingress"]
        return ingresses + [one for one in collector.spans if one.get("worker_id") == "w-2"]

    await until(lambda: len(spans()) >= 2, what="two spans")
    served, owned = spans()
    assert served["events"].count("claimed") == 2
    assert (owned["trace"], owned["parent"]) == (served["trace"], served["id"])
    assert owned["worker_id"] == "w-2"
    assert owned["epoch"] > 1
    await stack.empty()
