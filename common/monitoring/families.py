"""Every metric family of the service, as data.

The collector renders the table, docs/metrics.md is generated from it, and a test compares the alert rules and
the dashboard with it. Units are Prometheus's base units. A label has a few values that are known beforehand;
no label holds a stream, a client, an address or a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from common.errors import ErrorCode

PREFIX: Final = "parakeet"

# Upper bounds of histogram buckets, in seconds except the last two.
_LATENCY: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_FIRST: Final = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_COMMIT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_CLAIM: Final = (*_COMMIT[3:], 10.0)
# The frame of 80 ms and the chunk of 160 ms are bounds, so that "longer than a chunk" can be read off.
_STEP: Final = (0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.32, 0.64, 1.28, 2.56)
_AUDIO: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
_STREAMS: Final = tuple(float(2**power) for power in range(13))

STREAM_TRANSPORTS: Final = ("tcp", "websocket")
TRANSPORTS: Final = (*STREAM_TRANSPORTS, "http")
STAGES: Final = ("turn_detection", "pre_encode", "encode", "decode")
CODES: Final = tuple(code.value for code in ErrorCode)
# Ends of a stream without an error.
ENDED_WELL: Final = ("final", "client_gone")
# A fault of the media, or a worker that fell silent, for which there are no error codes.
RECORDING_FAILED: Final = "recording_failed"

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    attribute: its name in `IngressMetrics` or `WorkerMetrics`. name: as Prometheus sees it.
    label, values: the one label and all of its values, or empty. buckets: upper bounds of a histogram.
    """

    attribute: str
    name: str
    kind: Kind
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _families(role: str, rows: tuple[Family, ...]) -> tuple[Family, ...]:
    """Return the rows with whole names: prefix, role, and `_total` behind a counter's."""
    return tuple(
        Family(
            row.attribute,
            f"{PREFIX}_{role}_{row.attribute}" + ("_total" if row.kind == "counter" else ""),
            row.kind,
            row.help,
            row.label,
            row.values,
            row.buckets,
        )
        for row in rows
    )


def _counter(attribute: str, text: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return Family(attribute, "", "counter", text, label, values)


def _gauge(attribute: str, text: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return Family(attribute, "", "gauge", text, label, values)


def _histogram(attribute: str, text: str, buckets: tuple[float, ...]) -> Family:
    return Family(attribute, "", "histogram", text, buckets=buckets)


OTHER_STATUS: Final = "other"
REFUSED_STATUSES: Final = (
    *("400", "401", "403", "404", "405", "408", "413", "414", "426", "429", "431", "500", "503", "505"),
    OTHER_STATUS,
)
"""Labels of refused requests."""

BUILD_INFO: Final = f"{PREFIX}_build_info"

INGRESS: Final = _families(
    "ingress",
    (
        _gauge("connections", "Open client connections, those of HTTP among them.", "transport", TRANSPORTS),
        _gauge(
            "streams",
            "Streams that this ingress serves: without an owner yet, owned by a worker, or kept for a client"
            " that may resume.",
            "state",
            ("waiting", "decoding", "detached"),
        ),
        _gauge("draining", "1 from the first SIGTERM on."),
        _counter(
            "admissions",
            "Requests for a stream slot, by answer.",
            "outcome",
            ("admitted", "full", "no_worker", "redis", "over_limit"),
        ),
        _counter(
            "streams_ended",
            "Streams that ended here, once each: with a final result, by the client's leaving, or by an"
            " error's code. One that waits for its client, or goes on elsewhere, has not ended.",
            "outcome",
            (*ENDED_WELL, RECORDING_FAILED, *CODES),
        ),
        _counter(
            "errors",
            "Errors by code: messages to clients, and handshakes and uploads that were refused with one."
            " Other answers of HTTP are in `refused_requests` alone, and clients for whom there was no place"
            " in `connections_refused`.",
            "code",
            CODES,
        ),
        _counter("audio_seconds", "Audio that was received from clients."),
        _counter("received_bytes", "Bytes read from clients.", "transport", TRANSPORTS),
        _counter("sent_bytes", "Bytes written to clients.", "transport", STREAM_TRANSPORTS),
        _counter("results", "Result messages sent.", "kind", ("partial", "final")),
        _counter("results_merged", "Results that went into a later one because the client reads slowly."),
        _histogram(
            "result_latency_seconds",
            "From the arrival of a result's last sample to the write of the result; one live stream in 16.",
            _LATENCY,
        ),
        _histogram(
            "first_result_seconds", "From the first audio of a stream to its first result with text.", _FIRST
        ),
        _histogram(
            "final_latency_seconds", "From the end of a client's audio to the final result.", _LATENCY
        ),
        _histogram("claim_wait_seconds", "From the begin of a stream to its claim by a worker.", _CLAIM),
        _histogram("stream_duration_seconds", "Audio of a stream that has ended.", _AUDIO),
        _counter(
            "resumes",
            "Resumes: taken, refused, and those that took a stream away from a connection here.",
            "outcome",
            ("resumed", "refused", "elsewhere"),
        ),
        _counter("takeovers", "Changes of owner of the streams served here."),
        _counter(
            "ping_timeouts", "WebSocket connections that ended because their clients answered no pings."
        ),
        _counter("slow_bodies", "Requests that ended with 408 because their bodies came too slowly."),
        _counter("pace_waits", "Times that a client had to wait since it sent faster than real time."),
        _gauge("paused_connections", "Connections that are not read for now (back-pressure)."),
        _gauge("send_buffer_bytes", "Bytes that wait for slow clients."),
        _histogram("redis_commit_seconds", "Round trip of one pipelined commit of audio.", _COMMIT),
        _gauge(
            "redis_pending_bytes",
            "Audio that Redis has not confirmed yet, and 128 bytes for each of its messages.",
        ),
        _counter(
            "redis_reconnects", "Open connections to Redis that were lost, those for results not counted."
        ),
        _counter("audio_restored_entries", "Audio entries written again after Redis had lost them."),
        _gauge("event_loop_lag_seconds", "Largest lag of a 100 ms timer in the last 60 s."),
        _counter(
            "connections_refused",
            "Sockets for which there was no place, and requests behind a proxy whose address has too many.",
            "reason",
            ("files", "connections", "address"),
        ),
        _counter(
            "recordings",
            "Recordings that were uploaded, by how they ended. `busy`: no place, slot, worker or Redis;"
            " `client_gone` includes those that ended with 408 (`slow_bodies`).",
            "outcome",
            (
                *("transcribed", "invalid", "too_large", "busy", "over_limit", "unauthorized"),
                *("client_gone", "failed"),
            ),
        ),
        _histogram("recording_seconds", "From a recording's last byte to its transcript.", _AUDIO),
        _gauge("uploads", "Recordings that are received or decoded."),
        _gauge("decoders", "Processes that decode media."),
        _counter(
            "auth_failures",
            "Credentials that were refused; a key that was revoked is `expired`.",
            "reason",
            ("missing", "malformed", "unknown", "expired", "scope", "origin", "throttled"),
        ),
        _counter(
            "refused_requests",
            "Requests of the WebSocket port that were refused, by status: plain HTTP, uploads, and"
            " handshakes without a code. A handshake that was refused with one (`over_limit`, say) is in"
            " `errors` alone.",
            "status",
            REFUSED_STATUSES,
        ),
        _gauge(
            "certificate_expiry_timestamp_seconds", "End of validity of the certificate served, Unix time."
        ),
    ),
)

WORKER: Final = _families(
    "worker",
    (
        _gauge("slots", "Streams that this worker can own at once."),
        _gauge(
            "measured_streams",
            "Streams that this worker carries in real time, measured at its start; 0 where it was not.",
        ),
        _gauge("streams", "Streams that hold a slot."),
        _gauge("ready_streams", "Streams with a whole chunk or their end waiting."),
        _gauge("backlog_chunks", "Whole chunks that wait, over all streams."),
        _gauge("lease_held", "1 while this worker's lease is known to be valid."),
        _gauge("draining", "1 while this worker hands its streams over."),
        _histogram("step_seconds", "One engine step, all stages.", _STEP),
        _histogram("step_streams", "Streams in one engine step.", _STREAMS),
        _counter("stage_calls", "Batched calls of a stage.", "stage", STAGES),
        _counter(
            "stage_units",
            "Work of a stage: speech windows of 32 ms, chunks, 80 ms frames, 80 ms frames.",
            "stage",
            STAGES,
        ),
        _counter("stage_busy_seconds", "Time in a stage.", "stage", STAGES),
        _counter("tokens", "Tokens emitted."),
        _counter("audio_seconds", "Audio decoded."),
        _histogram(
            "audio_wait_seconds",
            "From the write of audio, by its ingress's clock, to its read here; the oldest of each read.",
            _LATENCY,
        ),
        _counter(
            "late_chunks",
            "Chunks of live streams decoded when the next chunk of their stream was whole already.",
        ),
        _counter(
            "claims", "Streams claimed: new ones, and those of other owners.", "kind", ("new", "takeover")
        ),
        _counter("fenced_writes", "Writes refused because the stream has another owner."),
        _counter("results_restored", "Results written again after Redis had lost them."),
        _counter("lease_lapses", "Times that the lease was found lost."),
        _gauge("engine_busy_seconds", "Age of the engine call that runs now, 0 where none runs."),
        _counter("snapshots", "Snapshots of decoder state.", "outcome", ("written", "skipped", "failed")),
        _counter("snapshot_bytes", "Bytes of snapshots written."),
        _histogram("redis_write_seconds", "Round trip of one batch of results.", _COMMIT),
        _counter("suspects", "Streams that were set aside because their owners died over the same audio."),
        _counter("poisoned", "Streams refused as poison."),
        _counter(
            "smart_turn_verdicts",
            "Answers of smart-turn.",
            "outcome",
            ("complete", "incomplete", "refused", "late", "failed"),
        ),
        _gauge(
            "cuda_memory_bytes",
            "GPU memory of this process as torch counts it.",
            "kind",
            ("allocated", "reserved"),
        ),
    ),
)

GROUP: Final = _families(
    "group",
    (
        _gauge("lanes", "Lanes that run."),
        _counter("lane_restarts", "Lanes that ended by themselves, and were started again."),
        _histogram("step_rows", "Rows of a step of the device, of all lanes.", _STREAMS),
        _gauge(
            "device_busy_seconds", "Age of the turn of the device's thread that runs now, 0 where none does."
        ),
        _gauge(
            "cuda_memory_bytes",
            "GPU memory of this process as torch counts it.",
            "kind",
            ("allocated", "reserved"),
        ),
    ),
)
