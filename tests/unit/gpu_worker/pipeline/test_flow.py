"""The table of the streams that a worker owns."""

from __future__ import annotations

from typing import Any, cast

from common.tracing.tracer import Tracer
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from tests.stream_records import owned_stream


class _Spans:
    """Stands for a tracer, and for each of its spans."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: list[dict[str, Any]] = []

    def ownership(self, _trace: str, **_attributes: Any) -> _Spans:
        self.begun += 1
        return self

    def end(self, **attributes: Any) -> None:
        self.ended.append(attributes)


def test_a_stream_that_comes_back_ends_the_span_of_its_former_ownership_and_takes_its_slot() -> None:
    spans = _Spans()
    table = StreamTable(2, tracer=cast(Tracer, spans))
    flows = [StreamFlow(owned_stream(1, epoch=epoch, trace="00-1-2-01")) for epoch in (1, 3)]
    for flow in flows:
        assert table.reserve(1) == 1
        table.add(flow)
    assert (spans.begun, spans.ended, table.num_free) == (2, [{"lost": 1}], 1)
    table.remove(flows[0])
    assert (table.get(flows[1].stream), len(spans.ended)) == (flows[1], 1)
    table.remove(flows[1])
    assert (table.num_free, len(spans.ended)) == (2, 2)
