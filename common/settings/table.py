"""The table of flags: names, environment variables, defaults, bounds, help, and their commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from common.options import (
    DETECTOR_WINDOW_MS,
    MAX_PAUSE_MS,
    MAX_SAMPLE_RATE,
    MAX_SHORT_MS,
    MAX_SILENCE_MS,
    MAX_THRESHOLD,
    MIN_SAMPLE_RATE,
    MIN_THRESHOLD,
    TURN_SIGNALS,
)
from common.settings.values import (
    DEVICE,
    HOST,
    PORT,
    PROCESS_ID,
    Choice,
    HostNames,
    Networks,
    OnOff,
    Origins,
    Real,
    RedisUrls,
    Text,
    ValueKind,
    Whole,
)

# The commands whose flags stand here, and what each does.
SUMMARIES = MappingProxyType(
    {
        "serve": "run it all on this machine: ingress, workers, and Redis unless --redis-url is given",
        "ingress": "run one ingress process: client sockets, no model",
        "worker": "run one worker: the model on one device",
        "status": "show the state of the cluster that a status port tells",
        "health": "end with status 0 if a worker of this host holds its lease (a container's health check)",
        "transcribe": "stream a recording, stdin or the microphone to a server and show the text",
        "check": "run the bundled recordings through a model, and judge its text and its speed",
    }
)
COMMANDS = tuple(SUMMARIES)

_SERVER = ("serve", "ingress", "worker")
_INGRESS = ("serve", "ingress")
_WORKER = ("serve", "worker")
_MODEL = (*_WORKER, "check")
_REDIS = (*_SERVER, "health")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag; `name` is the field of the settings, `default` is written as a user would write it."""

    name: str
    kind: ValueKind
    default: str
    help: str
    group: str
    commands: tuple[str, ...]
    metavar: str = "N"
    bare: str | None = None
    """The value of the flag written without one; None where it needs one."""
    command_defaults: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PARAKEET_" + self.name.upper()

    def default_for(self, command: str) -> str:
        return self.command_defaults.get(command, self.default)


# fmt: off
FLAGS: tuple[Flag, ...] = (
    # -- where clients connect
    Flag("host", HOST, "127.0.0.1",
         "address to listen on, or for a client to connect to",
         "Ports", (*_INGRESS, "status", "transcribe"), "ADDRESS"),
    Flag("port", PORT, "8765", "raw TCP port, newline-delimited JSON; a server with 0 has none", "Ports", _INGRESS, "PORT"),
    Flag("ws_port", PORT, "8000", "WebSocket port; a server with 0 has none", "Ports", (*_INGRESS, "transcribe"), "PORT"),
    Flag("status_port", PORT, "8050", "one-shot status port; a server with 0 has none",
         "Ports", (*_INGRESS, "status"), "PORT"),
    Flag("status_host", Text("a host name or an address, or nothing for the default", r"[^\s/]*"), "",
         "address of the status port; by default that of --host, or 127.0.0.1 with --auth-keys-file",
         "Ports", _INGRESS, "ADDRESS"),

    # -- who may come in
    Flag("auth_keys_file", Text("a path"), "",
         "file of API keys that `parakeet-server keys create` writes; without it, everybody is served",
         "Access", _INGRESS, "FILE"),
    Flag("require_auth", OnOff(), "off", "refuse to start without --auth-keys-file", "Access", _INGRESS, "on|off", "on"),
    Flag("allowed_origins", Origins(), "",
         "web origins whose pages may connect, besides the server's own; * allows any",
         "Access", _INGRESS, "ORIGIN,..."),
    Flag("allowed_hosts", HostNames(), "",
         "host names under which browsers may reach this server, besides IP addresses and local names; * "
         "allows any; with --auth-keys-file any is allowed unless this is given", "Access", _INGRESS, "NAME,..."),
    Flag("tls_cert", Text("a path"), "", "certificate chain of the client ports, PEM; read again when the file changes",
         "Access", _INGRESS, "FILE"),
    Flag("tls_key", Text("a path"), "", "private key of --tls-cert, PEM", "Access", _INGRESS, "FILE"),
    Flag("tls_client_ca", Text("a path"), "",
         "CA that signed the clients' certificates, PEM; without it no client needs one", "Access", _INGRESS, "FILE"),

    # -- the model
    Flag("model", Text("a folder, a .nemo file or a hub id such as owner/name"), "",
         "model to load instead of one of --model-size: a folder, a .nemo file or a hub id",
         "Model", _MODEL, "PATH|ID"),
    Flag("model_size", Choice(("tiny", "small", "large")), "small",
         "model variant; tiny is bundled, small and large are downloaded once", "Model", _MODEL, "SIZE"),
    Flag("model_revision", Text("a branch, tag or commit", r"\S+"), "main",
         "revision of a model of the hub", "Model", _MODEL, "REV"),
    Flag("device", DEVICE, "auto", "PyTorch device; auto is cuda where there is one", "Model", _MODEL, "DEVICE"),
    Flag("dtype", Choice(("auto", "float32", "bfloat16")), "auto",
         "arithmetic of the encoder; auto is float32 on CPU and bfloat16 on CUDA", "Model", _MODEL, "DTYPE"),
    Flag("backend", Choice(("native", "nemo", "null")), "native",
         "engine: ours, NVIDIA NeMo's (needs the [nemo] extra), or one that decodes nothing", "Model", _MODEL, "NAME"),
    Flag("chunk_ms", Whole(80, 10_000, auto=True, multiple_of=80), "auto",
         "audio of one model call, a length that the model was trained for; auto is the model's default",
         "Model", _MODEL, "MS"),
    Flag("turn_detection", OnOff(), "on", "voice activity and turn detection", "Model", _MODEL, "on|off", "on"),
    Flag("eou_reset", OnOff(), "on", "reset the decoder at each end of utterance, where the model has a token for it",
         "Model", _MODEL, "on|off", "on"),
    Flag("phrases_file", Text("a path"), "",
         "file of phrases to expect; those of a server hold for all its streams; one phrase a line, after a "
         "tab its boost of 0 to 10",
         "Model", (*_WORKER, "transcribe"), "FILE"),
    Flag("phrase_memory_mb", Whole(0, 4096), "64",
         "device memory for the phrases of a worker's streams; 0 turns phrase boosting off",
         "Model", _WORKER, "MB"),

    # -- turns
    Flag("turn_signals", Choice(TURN_SIGNALS), "vad+eou+smart_turn",
         "signals that may end an utterance; where the model or the worker lacks one, silence decides",
         "Turns", _WORKER, "SIGNALS"),
    Flag("vad_threshold", Real(MIN_THRESHOLD, MAX_THRESHOLD), "0.5",
         "probability from which 32 ms of audio count as speech", "Turns", _WORKER, "P"),
    Flag("turn_min_speech_ms", Whole(DETECTOR_WINDOW_MS, MAX_SHORT_MS), "96",
         "speech without a gap that starts an utterance", "Turns", _WORKER, "MS"),
    Flag("turn_pause_ms", Whole(DETECTOR_WINDOW_MS, MAX_SHORT_MS), "96",
         "silence that is reported as a pause, and after which smart-turn is asked", "Turns", _WORKER, "MS"),
    Flag("turn_silence_ms", Whole(DETECTOR_WINDOW_MS, MAX_SILENCE_MS), "1000",
         "silence that ends an utterance when no other signal has spoken", "Turns", _WORKER, "MS"),
    Flag("turn_max_pause_ms", Whole(DETECTOR_WINDOW_MS, MAX_PAUSE_MS), "1500",
         "silence that ends an utterance whatever the signals say", "Turns", _WORKER, "MS"),
    Flag("smart_turn", OnOff(), "off",
         "load smart-turn, so that streams can have it as a signal (needs the [smart-turn] extra)",
         "Turns", _WORKER, "on|off", "on"),
    Flag("smart_turn_threads", Whole(1, 64), "1", "threads that run smart-turn in a worker", "Turns", _WORKER),
    Flag("smart_turn_threshold", Real(0.05, 0.95), "0.7", "probability from which smart-turn's answer is 'complete'",
         "Turns", _WORKER, "P"),
    Flag("smart_turn_timeout_ms", Whole(10, 10_000), "500",
         "longest time that a result waits for smart-turn; after it, silence decides", "Turns", _WORKER, "MS"),

    # -- limits
    Flag("sample_rate", Whole(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE), "16000",
         "sample rate of clients' audio that states none; `hello` tells it", "Limits", _INGRESS, "HZ"),
    Flag("max_num_streams", Whole(1, 1_000_000), "100", "concurrent streams of the whole cluster",
         "Limits", (*_SERVER, "check")),
    Flag("max_connections", Whole(1, 1_000_000, auto=True), "auto",
         "open connections of one ingress on its two client ports; auto is what its limit of open files "
         "allows",
         "Limits", _INGRESS),
    Flag("max_connections_per_address", Whole(0, 1_000_000), "0",
         "open connections of one client address (IPv6: of one /64) to one ingress; 0 is no limit",
         "Limits", _INGRESS),
    Flag("turns_share", Real(0.01, 1), "0.1",
         "largest share of an ingress's time for new connections, plain HTTP and clients that send much at once; "
         "live streams have the rest", "Limits", _INGRESS),
    Flag("trusted_proxies", Networks(), "",
         "addresses and networks of proxies, separated by commas, whose X-Forwarded-For is believed",
         "Ports", _INGRESS, "ADDRESSES"),
    Flag("max_stream_seconds", Whole(1, 86_400), "300",
         "audio of one stream that may wait to be decoded", "Limits", _INGRESS, "S"),
    Flag("max_live_rate", Real(0, 1000), "2",
         "seconds of audio that are read of a live stream in each second, once its client is ahead of real time by "
         "--max-live-lead-s; 0 is no limit", "Limits", _INGRESS, "X"),
    Flag("max_live_lead_s", Real(0, 86_400), "300",
         "seconds by which a client may be ahead of real time, for each of its streams on an ingress; recordings that say "
         "so are not counted",
         "Limits", _INGRESS, "S"),
    Flag("worker_max_streams", Whole(1, 100_000, auto=True), "auto",
         "streams that one worker takes; auto is --max-num-streams", "Limits", _WORKER),
    Flag("max_line_bytes", Whole(1024, 64 << 20), str(1 << 20), "longest line on the TCP port",
         "Limits", _INGRESS, "BYTES"),
    Flag("max_frame_bytes", Whole(1024, 64 << 20), str(1 << 20), "longest WebSocket message",
         "Limits", _INGRESS, "BYTES"),
    Flag("max_upload_mb", Whole(1, 4096), "100", "largest recording that is uploaded whole", "Limits", _INGRESS, "MB"),
    Flag("max_uploads", Whole(1, 10_000, auto=True), "auto",
         "uploaded recordings that one ingress holds at once, while they arrive or are decoded; auto is "
         "twice --max-decoders", "Limits", _INGRESS),
    Flag("max_recording_s", Real(1, 604_800), "14400", "longest recording that is uploaded whole", "Limits", _INGRESS, "S"),
    Flag("max_finalizes", Whole(1, 1_000_000), "1000",
         "finalize messages of one stream that may wait for their answers", "Limits", _INGRESS),
    Flag("max_decoders", Whole(1, 1024), "4", "recordings and compressed live streams that one ingress decodes at once, each in a child process",
         "Limits", _INGRESS),
    Flag("max_decoder_mb", Whole(192, 65_536), "512", "memory that one of these child processes may map", "Limits", _INGRESS, "MB"),
    Flag("send_buffer_bytes", Whole(4096, 64 << 20), str(256 << 10),
         "bytes that may wait for a client that reads slowly, once partial results are merged; beyond, it is "
         "disconnected", "Limits", _INGRESS, "BYTES"),

    Flag("coalesce_ms", Whole(0, 1000), "20",
         "messages shorter than this wait at most this long for the stream's next ones, to share an entry in "
         "Redis; 0 writes each at once", "Limits", _INGRESS, "MS"),

    # -- batches and cache
    Flag("pre_encode_batch_size", Whole(1, 65_536, auto=True), "auto",
         "streams in one batch of feature pre-encoding; auto is 16 on CPU, and on CUDA the slots, at most 1024",
         "Batching", _WORKER),
    Flag("encode_batch_size", Whole(1, 65_536, auto=True), "auto",
         "streams in one batch of the encoder; auto is 48 on CPU, and on CUDA the slots, at most 4096 (1024 at chunks "
         "of 1120 ms)", "Batching", _WORKER),
    Flag("decode_batch_size", Whole(1, 65_536, auto=True), "auto",
         "streams in one batch of the decoder; auto as for the encoder", "Batching", _WORKER),
    Flag("recording_rows", Whole(1, 65_536, auto=True), "auto",
         "rows of a step that recordings get while live streams are open; auto is 1 on CPU, and on CUDA an "
         "eighth of the encoder's batch", "Batching", _WORKER),
    Flag("paged_kv_cache", OnOff(auto=True), "auto",
         "paged KV cache of the encoder's attention (CUDA and Triton); auto is on where it runs",
         "Batching", _WORKER, "on|off", "on"),
    Flag("paged_kv_page_size", Whole(1, 1024), "16", "frames of one KV page", "Batching", _WORKER, "FRAMES"),
    Flag("paged_kv_max_pages", Whole(0, 100_000_000), "0", "KV pages of one worker; 0 is as many as its slots need",
         "Batching", _WORKER),
    Flag("num_threads", Whole(1, 1024, auto=True), "auto",
         "CPU threads of PyTorch in one worker; auto divides the cores among the workers, and leaves one "
         "core of each share to the rest of the worker", "Batching", _MODEL),

    # -- Redis
    Flag("redis_url", RedisUrls(), "redis://127.0.0.1:6379/0",
         "Redis servers, separated by commas; serve starts an embedded one if none is given",
         "Redis", _REDIS, "URL", None, MappingProxyType({"serve": ""})),
    Flag("redis_password_file", Text("a path"), "",
         "file with the password for addresses that carry none", "Redis", _REDIS, "FILE"),
    Flag("redis_tls_ca", Text("a path"), "",
         "CA of rediss:// servers and Sentinels, PEM; the system's if none is given",
         "Redis", _REDIS, "FILE"),
    Flag("redis_tls_cert", Text("a path"), "", "certificate chain to show to rediss:// servers, PEM",
         "Redis", _REDIS, "FILE"),
    Flag("redis_tls_key", Text("a path"), "", "private key of --redis-tls-cert, PEM", "Redis", _REDIS, "FILE"),
    Flag("redis_tls_server_name", Text("a host name or an address", r"[^\s/]*"), "",
         "name in the certificates of rediss:// servers, if it is not the host of the address",
         "Redis", _REDIS, "NAME"),
    Flag("redis_shards", Whole(1, 1024), "1", "shards of the key layout; at least one a server", "Redis", _REDIS),
    Flag("redis_timeout_ms", Whole(50, 600_000), "5000", "longest wait for an answer from Redis",
         "Redis", _REDIS, "MS"),
    Flag("redis_maxmemory_mb", Whole(16, 1 << 24), "1024",
         "memory of the embedded server; at the limit clients are told to slow down", "Redis", ("serve",), "MB"),
    Flag("redis_loss_ms", Whole(0, 60_000), "3000",
         "time before its death that a Redis with an append-only file or replicas may forget: ingresses keep audio, and "
         "workers keep results, for this long after Redis took them, and write them again; of no use with the "
         "embedded server, which keeps nothing",
         "Redis", _SERVER, "MS"),

    Flag("redis_outage_s", Real(1, 600), "15",
         "time that Redis may be away, or full, before the streams that wait for it fail; with Sentinels, make it longer "
         "than they take to name another master", "Redis", _INGRESS, "S"),

    # -- processes
    Flag("num_ingress", Whole(1, 64), "1", "ingress processes, which share the ports", "Processes", ("serve",)),
    Flag("num_workers", Whole(0, 64, auto=True), "auto",
         "worker processes; auto is one a GPU; on CPU one a core, at most 4, as memory allows", "Processes", ("serve",)),
    Flag("lanes", Whole(1, 16, auto=True), "auto",
         "processes of a worker that share its device, each a worker of the cluster; one process fills a core long "
         "before a GPU is full; auto is one, but `serve` on a GPU takes one for each 2,000 streams, as many as two fifths "
         "of the cores allow, and 4 at most", "Processes", _WORKER),
    Flag("start_timeout_s", Real(1, 86_400), "1800",
         "longest wait for the workers to get ready, a model download included", "Processes", ("serve", "check"), "S"),
    Flag("ingress_id", PROCESS_ID, "", "name of this ingress, unique in the cluster; generated if not given",
         "Processes", ("ingress",), "ID"),
    Flag("worker_id", PROCESS_ID, "", "name of this worker, unique in the cluster; generated if not given",
         "Processes", ("worker",), "ID"),

    # -- timing
    Flag("handshake_timeout_ms", Whole(100, 600_000), "10000", "longest time for a WebSocket handshake",
         "Timing", _INGRESS, "MS"),
    Flag("begin_timeout_s", Real(0.1, 86_400), "10",
         "time after which a client that has begun no stream loses its slot; it stays connected",
         "Timing", _INGRESS, "S"),
    Flag("claim_timeout_ms", Whole(100, 600_000), "10000", "longest wait for a worker to take a stream",
         "Timing", _INGRESS, "MS"),
    Flag("idle_timeout_s", Real(0, 86_400), "0", "silence after which a client is disconnected; 0 is never",
         "Timing", _INGRESS, "S"),
    Flag("audio_timeout_s", Real(0, 604_800), "3600",
         "a live stream that gets less than a second of audio in this time ends, whatever else its client "
         "sends; 0 is never",
         "Timing", _INGRESS, "S"),
    Flag("keep_alive_s", Real(0, 3600), "15",
         "time that an HTTP connection without a request stays open; make it longer than that of a balancer in front",
         "Timing", _INGRESS, "S"),
    Flag("body_timeout_s", Real(0.1, 3600), "30",
         "window in which a request's body must arrive at --min-body-rate; otherwise its request ends",
         "Timing", _INGRESS, "S"),
    Flag("min_body_rate", Whole(1, 1 << 30), "8192",
         "bytes a second that a request's body must bring, on average over each --body-timeout-s", "Timing", _INGRESS, "BYTES"),
    Flag("ping_interval_s", Real(0, 3600), "20",
         "time between two pings to a WebSocket client; a client that answers none for twice this time is "
         "disconnected; 0 sends none",
         "Timing", _INGRESS, "S"),
    Flag("drain_delay_s", Real(0, 600), "0",
         "at a stop, the time between reporting 'not ready' on the metrics port and closing the listeners",
         "Timing", _INGRESS, "S"),
    Flag("drain_timeout_s", Real(0, 3600), "30", "at a stop, the time that running streams get to end",
         "Timing", _SERVER, "S"),
    Flag("stream_ttl_s", Whole(5, 86_400), "120", "time to live of a stream's keys that no process renews",
         "Timing", _INGRESS, "S"),
    Flag("resume_grace_s", Real(0, 3600), "30", "time within which a stream whose connection broke can be resumed",
         "Timing", _INGRESS, "S"),
    Flag("heartbeat_ms", Whole(50, 60_000), "1000", "time between two heartbeats of an ingress",
         "Timing", _INGRESS, "MS"),
    Flag("lease_ms", Whole(200, 600_000), "3000", "a worker that does not renew its lease for this long loses its streams",
         "Timing", _WORKER, "MS"),
    Flag("step_timeout_ms", Whole(100, 600_000), "10000",
         "an engine whose step takes longer counts as hung, and its worker's lease lapses", "Timing", _WORKER, "MS"),
    Flag("step_pace_ms", Real(0, 1000), "20",
         "on CUDA, longest pause between two steps of a worker whose CPU core is busy, so that steps are "
         "larger; 0 is no pause",
         "Timing", _WORKER, "MS"),
    Flag("replay_seconds", Whole(2, 3600), "60",
         "audio kept for the replay after a takeover, besides what --snapshots audio keeps", "Timing", _WORKER, "S"),
    Flag("snapshots", Choice(("auto", "state", "audio")), "auto",
         "what a takeover starts from: the whole state of a stream, or 1 to 3 minutes of its audio that "
         "rebuild it; auto is audio on CUDA",
         "Timing", _WORKER, "KIND"),
    Flag("measure_capacity_s", Real(0, 60), "1",
         "longest time that a worker spends at its start on measuring how many real-time streams it carries; "
         "0 measures nothing",
         "Timing", _MODEL, "S", None, MappingProxyType({"check": "5"})),
    Flag("dead_letters", OnOff(), "on",
         "keep 16 entries of the audio that crashed its workers in Redis, for an hour", "Limits", _WORKER, "on|off", "on"),
    Flag("null_step_ms", Real(0, 60_000), "0", "duration of a step of --backend null", "Timing", _WORKER, "MS"),

    # -- monitoring
    Flag("metrics_port", PORT, "0",
         "port of /metrics and of the health probes; 0 turns it off; serve counts up from it: its ingresses, then its workers",
         "Monitoring", _SERVER, "PORT"),
    Flag("metrics_host", Text("a host name or an address", r"[^\s/]+"), "127.0.0.1",
         "address that the metrics port listens on", "Monitoring", _SERVER, "ADDRESS"),

    Flag("trace_endpoint", Text("an http:// or https:// address", r"(https?://\S+)?"), "",
         "where to send spans of streams, by OTLP over HTTP, such as http://collector:4318/v1/traces (needs "
         "the [otel] extra)",
         "Monitoring", _SERVER, "URL"),
    Flag("trace_ratio", Real(0, 1), "1",
         "share of streams that are traced; a client that sends a traceparent decides for itself", "Monitoring", _SERVER, "P"),

    # -- logging
    Flag("log_level", Choice(("debug", "info", "warning", "error")), "info", "lowest level that is logged",
         "Logging", _SERVER, "LEVEL"),
    Flag("log_format", Choice(("text", "json")), "text", "lines of text for people, or of JSON, to stdout",
         "Logging", _SERVER, "FORMAT"),
    Flag("log_config", Text("a path to a JSON file or JSON, a logging dictConfig"), "",
         "logging dictConfig to use instead of the default: JSON, or the path of a JSON file", "Logging", _SERVER, "JSON"),

    # -- clients
    Flag("url", Text("a ws://, wss://, tcp:// or tcps:// address", r"((wss?|tcps?)://\S+)?"), "",
         "address of a server, to use instead of --host and --ws-port", "Clients", ("transcribe",), "URL"),
    Flag("mic", OnOff(), "off", "transcribe the microphone (needs PortAudio and the sounddevice package)",
         "Clients", ("transcribe",), "on|off", "on"),
    Flag("real_time", OnOff(), "off", "send a file as fast as it was spoken, not as fast as possible",
         "Clients", ("transcribe",), "on|off", "on"),
    Flag("recording", OnOff(), "off", "stdin has a recording, and nobody who speaks now: more than five minutes of it may go faster than they were spoken",
         "Clients", ("transcribe",), "on|off", "on"),
    Flag("api_key", Text("a key of visible ASCII characters", r"[!-~]*"), "",
         "API key; prefer its environment variable, since ps shows command lines",
         "Clients", ("transcribe",), "KEY"),
    Flag("output", Text("the path of a file"), "", "file to write the transcript to, instead of stdout",
         "Clients", ("transcribe",), "FILE"),
    Flag("format", Choice(("auto", "txt", "srt", "vtt", "json")), "auto",
         "format of the transcript; auto goes by the ending of --output, and is txt without one",
         "Clients", ("transcribe",), "FORMAT"),
    Flag("words", OnOff(), "off", "with txt, print one word a line: start and end in seconds, confidence, word",
         "Clients", ("transcribe",), "on|off", "on"),
    Flag("language", Text("a language of a multilingual model, such as de-DE", r"\S{0,32}"), "",
         "language that is spoken, for a multilingual model", "Clients", ("transcribe",), "NAME"),
    Flag("phrases", Text("phrases with commas between them"), "",
         "names and terms to expect, with commas between them; more in --phrases-file",
         "Clients", ("transcribe",), "PHRASES"),
    Flag("message_ms", Whole(10, 10_000), "160", "audio in one message", "Clients", ("transcribe",), "MS"),
    Flag("input_rate", Whole(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE), "16000", "sample rate of raw 16-bit audio on stdin",
         "Clients", ("transcribe",), "HZ"),
    Flag("json", OnOff(), "off", "print each result, the status, or the findings as a JSON line", "Clients", ("status", "transcribe", "check"), "on|off", "on"),
    Flag("watch_s", Real(0, 3600), "0", "print the status again every so many seconds; 0 prints it once",
         "Clients", ("status",), "S"),
)
# fmt: on
