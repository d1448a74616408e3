"""Flags, environment and defaults become settings; wrong values become one sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.settings import (
    COMMANDS,
    FLAGS,
    IngressSettings,
    StatusSettings,
    TranscribeSettings,
    WorkerSettings,
    child_argv,
    child_environment,
    flags_of,
    host_stem,
    is_made_up,
    new_process_id,
    parse,
)
from common.settings.docs import DOCUMENT, document


def test_a_flag_goes_before_the_environment_and_that_before_the_default() -> None:
    environ = {"PARAKEET_PORT": "7001", "PARAKEET_WS_PORT": "7002"}
    settings = parse("ingress", ["--port", "7003"], environ)
    assert (settings.port, settings.ws_port, settings.status_port) == (7003, 7002, 8050)


def test_an_empty_variable_is_none() -> None:
    assert parse("ingress", [], {"PARAKEET_PORT": ""}).port == 8765


def test_defaults_are_as_documented() -> None:
    serve = parse("serve", [], {})
    assert (serve.ingress.host, serve.ingress.port) == ("127.0.0.1", 8765)
    assert (serve.ingress.ws_port, serve.ingress.status_port) == (8000, 8050)
    assert (serve.ingress.sample_rate, serve.ingress.max_num_streams) == (16000, 100)
    assert serve.ingress.max_stream_seconds == 300
    assert (serve.worker.model_size, serve.worker.device) == ("small", "auto")
    assert (serve.worker.paged_kv_page_size, serve.worker.paged_kv_max_pages) == (16, 0)
    assert serve.worker.encode_batch_size is None
    assert serve.worker.worker_max_streams == 100
    assert (serve.ingress.redis_url, serve.num_ingress, serve.num_workers) == ((), 1, None)


def test_the_documented_command_line_is_taken() -> None:
    argv = ["--host", "0.0.0.0", "--port", "8765", "--ws-port", "8000", "--device", "cuda"]
    settings = parse("serve", argv, {})
    assert (settings.ingress.host, settings.worker.device) == ("0.0.0.0", "cuda")


DOCUMENTED = """
--host --port --ws-port --status-port --model-size --device --sample-rate --max-num-streams
--max-stream-seconds --pre-encode-batch-size --encode-batch-size --decode-batch-size --paged-kv-cache
--paged-kv-page-size --paged-kv-max-pages --model --redis-url --num-ingress --num-workers --log-level
--log-format
"""


def test_serve_takes_every_documented_flag() -> None:
    assert set(DOCUMENTED.split()) <= {flag.option for flag in flags_of("serve")}


@pytest.mark.parametrize(
    ("command", "argv", "sentence"),
    [
        ("serve", ["--port", "x"], "--port got 'x', but takes a whole number from 0 to 65535."),
        ("serve", ["--port=65536"], "--port got '65536', but takes a whole number from 0 to 65535."),
        (
            "worker",
            ["--model-size", "huge"],
            "--model-size got 'huge', but takes tiny, small or large.",
        ),
        (
            "worker",
            ["--chunk-ms", "100"],
            "--chunk-ms got '100', but takes a multiple of 80 from 80 to 10000, or 'auto'.",
        ),
        ("worker", ["--device", "tpu"], "--device got 'tpu', but takes auto, cpu, cuda or cuda:N."),
        ("serve", ["--drain-timeout-s", "nan"], "takes a number from 0 to 3600."),
        ("serve", ["--turn-detection", "perhaps"], "but takes on or off."),
        ("ingress", ["--redis-url", "localhost"], "--redis-url got 'localhost'. A Redis address begins"),
        ("worker", ["--redis-url", "redis://h:99999"], "--redis-url got 'redis://h:99999'"),
        ("worker", ["--redis-url", "redis+sentinel://h"], "--redis-url got 'redis+sentinel://h'"),
        ("ingress", ["--port", "8000"], "--ws-port got 8000, but takes another port than --port"),
        (
            "serve",
            ["--metrics-port", "8050"],
            "--metrics-port got 8050, but takes another port than --status-port",
        ),
        ("ingress", ["--port", "0", "--ws-port", "0"], "clients need one of them"),
        ("ingress", ["--device", "cpu"], "unrecognized arguments: --device cpu"),
        (
            "serve",
            ["--model", "/no/such/model"],
            "--model got '/no/such/model', but takes a folder, a .nemo file",
        ),
        ("worker", ["--model", "owner/none.nemo"], "--model got 'owner/none.nemo', but takes a folder"),
        ("serve", ["--paged-kv-cache", "--device", "cpu"], "--paged-kv-cache got on, but takes off or auto"),
        (
            "serve",
            ["--max-stream-seconds", "19", "--chunk-ms", "10000"],
            "--max-stream-seconds got 19, but takes at least two chunks of --chunk-ms 10000",
        ),
        ("status", ["--port", "1"], "unrecognized arguments: --port 1 (--status-port is meant?)."),
        ("serve", ["--por", "1"], "unrecognized arguments: --por 1"),
        ("serve", ["--port"], "expected one argument"),
        ("worker", ["--backend", "null", "--model", "x/y"], "--backend null takes none"),
        ("worker", ["--worker-id", "a b"], "--worker-id got 'a b', but takes 1 to 64 letters"),
        ("ingress", ["--redis-tls-cert", "c.pem"], "--redis-tls-cert and --redis-tls-key go together"),
        ("worker", ["--redis-tls-ca", "ca.pem"], "no address of --redis-url begins with rediss"),
        ("serve", ["--redis-tls-server-name", "redis"], "no address of --redis-url begins with rediss"),
        ("serve", ["--redis-password-file", "f"], "without --redis-url there is no password"),
        ("transcribe", [], "takes either one FILE (or -) or --mic"),
        ("transcribe", ["a.wav", "--api-key", "pk_…"], "takes a key of visible ASCII characters"),
        ("transcribe", ["ws://host:8000"], "ws://host:8000 is the address of a server, for --url"),
        ("transcribe", ["a.wav", "--mic"], "takes either one FILE (or -) or --mic"),
    ],
)
def test_a_wrong_value_says_what_it_got_and_what_the_flag_takes(
    command: str, argv: list[str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(command, argv, {})  # type: ignore[call-overload]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named_as_the_variable() -> None:
    with pytest.raises(
        SettingsError, match=r"^PARAKEET_NUM_INGRESS got '0', but takes a whole number from 1"
    ):
        parse("serve", [], {"PARAKEET_NUM_INGRESS": "0"})


def test_a_hub_id_and_what_is_there_are_models(tmp_path: Path) -> None:
    for model in ("owner/name", str(tmp_path)):
        assert parse("worker", ["--model", model], {}).model == model


def test_a_wrong_address_is_shown_without_its_password() -> None:
    with pytest.raises(
        SettingsError, match=r"^--redis-url got 'redis://\*\*\*@h 1'\. A Redis address has no spaces"
    ) as caught:
        parse("serve", ["--redis-url", "redis://user:secret@h 1"], {})
    assert "secret" not in str(caught.value)


def test_a_wrong_address_is_shown_without_a_password_that_holds_an_at_sign() -> None:
    with pytest.raises(SettingsError) as caught:
        parse("serve", ["--redis-url", "redis://:sec@ret/x@h,redis://:ret@g"], {})
    assert "ret" not in str(caught.value)


def test_a_name_that_was_made_up_is_told_from_one_that_was_given() -> None:
    assert is_made_up(parse("ingress", [], {}).ingress_id, "i")
    assert is_made_up(new_process_id("w"), "w")
    for given in ("i-1", "ingress-0", host_stem("i") + "1", new_process_id("w")):
        assert not is_made_up(parse("ingress", ["--ingress-id", given], {}).ingress_id, "i")


def test_a_switch_without_a_value_is_on_and_takes_all_spellings() -> None:
    assert parse("worker", ["--paged-kv-cache"], {}).paged_kv_cache is True
    assert parse("worker", ["--paged-kv-cache", "off"], {}).paged_kv_cache is False
    assert parse("worker", [], {}).paged_kv_cache is None
    assert parse("worker", [], {"PARAKEET_EOU_RESET": "False"}).eou_reset is False


@pytest.mark.parametrize(
    ("argv", "json", "real_time"),
    [
        (["--json", "a.wav"], True, False),
        (["--json", "--real-time", "a.wav"], True, True),
        (["--json", "off", "--real-time", "on", "a.wav"], False, True),
        (["--json=off", "a.wav", "--real-time"], False, True),
        (["a.wav", "--json", "yes"], True, False),
    ],
)
def test_a_file_name_after_a_switch_is_a_file_name(argv: list[str], json: bool, real_time: bool) -> None:
    settings = parse("transcribe", argv, {})
    assert (settings.source, settings.json, settings.real_time) == ("a.wav", json, real_time)


def test_a_file_that_is_called_like_a_value_is_named_with_its_folder() -> None:
    assert parse("transcribe", ["--json", "./on"], {}).source == "./on"
    assert parse("transcribe", ["--json", "--", "on"], {}).source == "on"


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("--log-level", "INFO", "info"),
        ("--log-format", "Json", "json"),
        ("--model-size", "TINY", "tiny"),
        ("--device", "CUDA:1", "cuda:1"),
        ("--chunk-ms", "Auto", None),
        ("--turn-signals", "VAD+EOU", "vad+eou"),
    ],
)
def test_words_are_taken_in_large_letters_too(flag: str, text: str, value: object) -> None:
    settings = parse("worker", [flag, text], {})
    assert getattr(settings, flag[2:].replace("-", "_")) == value


@pytest.mark.parametrize(("text", "host"), [("::1", "::1"), ("[::1]", "::1"), ("::", "::"), ("h.x", "h.x")])
def test_a_host_may_be_an_ipv6_address_in_brackets_or_not(text: str, host: str) -> None:
    assert parse("ingress", ["--host", text], {}).host == host
    assert parse("status", ["--host", text], {}).host == host


def test_several_redis_servers_and_a_sentinel_address() -> None:
    urls = "redis://a:1/0,redis+sentinel://:pw@h1:26379,h2/mymaster,unix:///run/r.sock"
    settings = parse("worker", ["--redis-url", urls], {})
    assert settings.redis_url == (
        "redis://a:1/0",
        "redis+sentinel://:pw@h1:26379,h2/mymaster",
        "unix:///run/r.sock",
    )
    assert settings.redis_shards == 3


def test_process_ids_are_made_up_and_differ() -> None:
    first, second = parse("worker", [], {}), parse("worker", [], {})
    assert first.worker_id
    assert first.worker_id != second.worker_id
    assert parse("worker", ["--worker-id", "w.1"], {}).worker_id == "w.1"


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("ingress", (IngressSettings,)),
        ("worker", (WorkerSettings,)),
        ("status", (StatusSettings,)),
        ("transcribe", (TranscribeSettings,)),
    ],
)
def test_table_and_dataclasses_have_the_same_names(command: str, kinds: tuple[type, ...]) -> None:
    in_table = {flag.name for flag in flags_of(command)}
    in_class = {field.name for kind in kinds for field in fields(kind)}
    assert in_class - in_table <= {"source"}
    assert in_table <= in_class


def test_every_flag_is_taken_by_a_command_and_its_default_is_valid() -> None:
    for flag in FLAGS:
        assert set(flag.commands) <= set(COMMANDS)
        for command in flag.commands:
            flag.kind.parse(flag.default_for(command))
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("ingress", ["--port=7000", "--ws-port=0", "--redis-url=redis://:secret@h/1", "--log-format=json"]),
        (
            "worker",
            [
                "--model-size=tiny",
                "--device=cpu",
                "--paged-kv-cache=off",
                "--chunk-ms=560",
                "--eou-reset=off",
            ],
        ),
    ],
)
def test_a_child_gets_the_same_settings(command: str, argv: list[str]) -> None:
    given = {"PARAKEET_LEASE_MS": "5000", "PARAKEET_CLAIM_TIMEOUT_MS": "700", "HOME": "/root"}
    settings = parse(command, argv, given)  # type: ignore[call-overload]
    environment = child_environment(settings, given)
    line = child_argv(settings)
    assert parse(command, line, environment) == settings  # type: ignore[call-overload]
    assert environment["HOME"] == "/root"
    assert not any("secret" in argument for argument in line)


def test_the_document_of_flags_is_that_of_the_table() -> None:
    assert DOCUMENT.read_text() == document(), "python -m common.settings.docs writes it"


@pytest.mark.parametrize(
    ("flags", "machine", "sentence"),
    [
        (["--backend=nemo"], "x86_64", "--lanes got 4, but takes 1 with --backend nemo."),
        (
            ["--worker-max-streams=3"],
            "x86_64",
            "--lanes got 4, but takes no more than there are streams: --worker-max-streams is 3.",
        ),
        ([], "aarch64", "--lanes got 4, but takes 1 on aarch64: lanes need an x86-64 processor."),
    ],
)
def test_lanes_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], machine: str, sentence: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(SettingsError) as refused:
        parse("serve", ["--lanes=4", *flags], {})
    assert str(refused.value) == sentence
    with pytest.raises(SettingsError) as refused:
        parse("worker", ["--lanes=4", *flags], {})
    assert str(refused.value) == sentence
    assert parse("worker", ["--lanes=1", *flags], {}).lanes == 1


def test_lanes_have_ports_behind_their_groups() -> None:
    flags = ["--lanes=4", "--metrics-port=65532"]
    with pytest.raises(SettingsError, match="takes at most 65531 with --lanes 4"):
        parse("worker", flags, {})
    assert parse("worker", ["--lanes=4", "--metrics-port=65531"], {}).lanes == 4


def test_lanes_are_chosen_where_nobody_says_how_many() -> None:
    assert parse("worker", [], {}).lanes == 1
    assert parse("serve", [], {}).choose_lanes
    assert not parse("serve", ["--lanes=1"], {}).choose_lanes
