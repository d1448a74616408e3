"""The settings of each command: one frozen dataclass for each command, with the flags' names as fields.

A field that is None means `auto`. `common.settings.parse` makes the settings and checks every value.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """Settings of a process's connections to Redis."""

    redis_url: tuple[str, ...]
    redis_shards: int
    redis_timeout_ms: int
    redis_password_file: str
    redis_tls_ca: str
    redis_tls_cert: str
    redis_tls_key: str
    redis_tls_server_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings(RedisSettings):
    """Settings that ingresses and workers have in common."""

    log_level: str
    log_format: str
    log_config: str
    """Empty, a path to a JSON file, or JSON itself: a logging dictConfig that replaces the default."""
    max_num_streams: int
    redis_loss_ms: int
    drain_timeout_s: float
    metrics_port: int
    metrics_host: str
    trace_endpoint: str
    """Empty for no tracing."""
    trace_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings(ClusterSettings):
    """Settings of one ingress process."""

    host: str
    port: int
    ws_port: int
    status_port: int
    status_host: str
    """Never empty after parsing."""
    auth_keys_file: str
    require_auth: bool
    allowed_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    tls_cert: str
    tls_key: str
    tls_client_ca: str
    ingress_id: str
    """Never empty after parsing: generated if it was not set."""
    sample_rate: int
    max_stream_seconds: int
    max_line_bytes: int
    max_frame_bytes: int
    max_upload_mb: int
    max_decoders: int
    max_decoder_mb: int
    max_uploads: int | None
    """None means twice `max_decoders`."""
    max_recording_s: float
    max_live_rate: float
    max_live_lead_s: float
    max_finalizes: int
    send_buffer_bytes: int
    coalesce_ms: int
    redis_outage_s: float
    handshake_timeout_ms: int
    begin_timeout_s: float
    ping_interval_s: float
    keep_alive_s: float
    body_timeout_s: float
    min_body_rate: int
    audio_timeout_s: float
    drain_delay_s: float
    claim_timeout_ms: int
    stream_ttl_s: int
    resume_grace_s: float
    heartbeat_ms: int
    idle_timeout_s: float
    max_connections: int | None
    """None means as many as the limit of open files allows."""
    max_connections_per_address: int
    turns_share: float
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(ClusterSettings):
    """Settings of one worker process."""

    worker_id: str
    """Never empty after parsing: generated if it was not set."""
    model: str
    model_size: str
    model_revision: str
    device: str
    dtype: str
    backend: str
    chunk_ms: int | None
    lanes: int
    worker_max_streams: int
    """Slots; the value of `max_num_streams` if it was not set."""
    pre_encode_batch_size: int | None
    encode_batch_size: int | None
    decode_batch_size: int | None
    paged_kv_cache: bool | None
    paged_kv_page_size: int
    paged_kv_max_pages: int
    recording_rows: int | None
    num_threads: int | None
    lease_ms: int
    step_timeout_ms: int
    step_pace_ms: float
    replay_seconds: int
    dead_letters: bool
    snapshots: str
    eou_reset: bool
    turn_detection: bool
    phrases_file: str
    phrase_memory_mb: int
    turn_signals: str
    vad_threshold: float
    turn_min_speech_ms: int
    turn_pause_ms: int
    turn_silence_ms: int
    turn_max_pause_ms: int
    smart_turn: bool
    smart_turn_threads: int
    smart_turn_threshold: float
    smart_turn_timeout_ms: int
    measure_capacity_s: float
    null_step_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of a whole stack on one machine; `redis_url` is empty for the embedded server."""

    ingress: IngressSettings
    worker: WorkerSettings
    num_ingress: int
    num_workers: int | None
    choose_lanes: bool
    redis_maxmemory_mb: int
    start_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSettings:
    """Settings of the `status` client."""

    host: str
    status_port: int
    json: bool
    watch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings(RedisSettings):
    """Settings of `health`, the check of a worker's container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeSettings:
    """Settings of the `transcribe` client; `source` is a path, `-` for stdin, or empty for the microphone."""

    api_key: str
    """Empty for a server without API keys."""
    output: str
    """Empty for stdout."""
    format: str
    words: bool
    language: str
    phrases: str
    """Phrases with commas between them."""
    phrases_file: str

    host: str
    ws_port: int
    url: str
    source: str
    mic: bool
    real_time: bool
    recording: bool
    message_ms: int
    input_rate: int
    json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """Settings of `check`: of the stack that it starts for itself, and of its output."""

    model: str
    model_size: str
    model_revision: str
    device: str
    dtype: str
    backend: str
    chunk_ms: int | None
    turn_detection: bool
    eou_reset: bool
    num_threads: int | None
    max_num_streams: int
    measure_capacity_s: float
    start_timeout_s: float
    json: bool
