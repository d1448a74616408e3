"""Makes settings from a command line and an environment: flag over environment over default."""

from __future__ import annotations

import argparse
import os
import platform
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, overload

from common.errors import SettingsError
from common.process.standard_streams import complain
from common.process.version import package_version
from common.settings.schema import (
    CheckSettings,
    HealthSettings,
    IngressSettings,
    ServeSettings,
    StatusSettings,
    TranscribeSettings,
    WorkerSettings,
)
from common.settings.table import FLAGS, SUMMARIES, Flag
from common.settings.values import HUB_ID, RedisUrls

Settings = (
    IngressSettings
    | WorkerSettings
    | ServeSettings
    | StatusSettings
    | HealthSettings
    | TranscribeSettings
    | CheckSettings
)
_T = TypeVar("_T")

PROGRAM = "parakeet-server"
_MAX_HOST_LENGTH = 40
SECRET_FLAGS = frozenset({"redis_url", "log_config"})
"""Flags that a child gets by environment: an address may hold a password, and `ps` shows command lines."""
_ORDERED_MACHINES = frozenset({"x86_64", "AMD64"})
_PASSWORD = re.compile(r"//.*@", re.DOTALL)  # a password may hold an @ itself


class _Joined(argparse.Action):
    """A flag that may be given more than once; its values are joined by commas."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, *_: object) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: -(-[a-z][a-z-]*)", message)
        longer = [flag for flag in self._option_string_actions if unknown and flag.endswith(unknown[1])]
        hint = f" ({' or '.join(longer)} is meant?)" if longer else ""
        raise SettingsError(f"{message}{hint}.")


def flags_of(command: str) -> tuple[Flag, ...]:
    """Return the flags that a command takes, in the table's order."""
    return tuple(flag for flag in FLAGS if command in flag.commands)


def host_stem(prefix: str) -> str:
    """Return the common prefix of the names of this host's processes of one kind."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:_MAX_HOST_LENGTH]
    return f"{prefix}-{host}-"


def new_process_id(prefix: str) -> str:
    """Return a process name that is unique in the cluster."""
    return host_stem(prefix) + secrets.token_hex(4)


def lane_ids(worker_id: str, num_lanes: int) -> tuple[str, ...]:
    """Return the names of a worker's lanes in the cluster; a worker of one process has its own name alone."""
    return (worker_id,) if num_lanes == 1 else tuple(f"{worker_id}-l{lane}" for lane in range(num_lanes))


def is_made_up(process_id: str, prefix: str) -> bool:
    """Return whether `new_process_id` made the name on this host: no earlier process had it."""
    return re.fullmatch(re.escape(host_stem(prefix)) + "[0-9a-f]{8}", process_id) is not None


def build_parser(command: str, flags: Iterable[Flag]) -> argparse.ArgumentParser:
    """Return the argparse parser of a command, its flags grouped as in the table."""
    summary = SUMMARIES.get(command)
    parser = _Parser(
        prog=f"{PROGRAM} {command}".strip(),
        usage=f"%(prog)s [FLAG ...]{' [FILE]' if command == 'transcribe' else ''}",
        description=f"{summary[0].upper()}{summary[1:]}." if summary else None,
        epilog="Each flag can be set by its environment variable instead; a flag overrides its variable.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        # As wide as the terminal, which argparse asks for itself.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36),
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM} {package_version()}",
        help="show the version and leave",
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        default = flag.default_for(command) or "none"
        optional: dict[str, Any] = {} if flag.bare is None else {"nargs": "?", "const": flag.bare}
        if isinstance(flag.kind, RedisUrls):
            optional["action"] = _Joined
        groups[flag.group].add_argument(
            flag.option,
            dest=flag.name,
            metavar=flag.metavar,
            help=f"{flag.help} [default: {default}; env: {flag.variable}]".replace("%", "%%"),
            **optional,
        )
    if command == "transcribe":
        parser.add_argument(
            "source",
            nargs="?",
            metavar="FILE",
            help="a recording: WAV, FLAC, Ogg, MP3, M4A and others; - for one of these "
            "on stdin, or for raw 16-bit audio there",
        )
    return parser


def _value(flag: Flag, text: str, said_by: str) -> object:
    try:
        return flag.kind.parse(text)
    except (SettingsError, ValueError) as error:
        shown = _PASSWORD.sub("//***@", text) if flag.name in SECRET_FLAGS else text
        if isinstance(error, SettingsError):  # it says itself what is wrong
            raise SettingsError(f"{said_by} got {shown!r}. {error}") from None
        raise SettingsError(f"{said_by} got {shown!r}, but takes {flag.kind.takes}.") from None


def _with_explicit_switches(flags: Iterable[Flag], argv: Sequence[str]) -> list[str]:
    """Add the value of each switch that precedes another argument, such as a FILE."""
    switches = {flag.option: flag for flag in flags if flag.bare is not None}
    explicit: list[str] = []
    for position, argument in enumerate(argv):
        following = argv[position + 1] if position + 1 < len(argv) else ""
        flag = switches.get(argument)
        explicit.append(argument if flag is None or _takes(flag, following) else f"{argument}={flag.bare}")
    return explicit


def _takes(flag: Flag, text: str) -> bool:
    try:
        flag.kind.parse(text)
    except ValueError:
        return False
    return True


def _resolve(command: str, argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    flags = flags_of(command)
    if command == "transcribe":
        argv = _with_explicit_switches(flags, argv)
    given = vars(build_parser(command, flags).parse_args(list(argv)))
    values: dict[str, Any] = {}
    for flag in flags:
        if flag.name in given:
            values[flag.name] = _value(flag, given[flag.name], flag.option)
        elif environ.get(flag.variable):
            values[flag.name] = _value(flag, environ[flag.variable], flag.variable)
        else:
            values[flag.name] = _value(flag, flag.default_for(command), flag.option)
    if command == "transcribe":
        values["source"] = given.get("source") or ""
    return values


def _check_ports(values: Mapping[str, Any]) -> None:
    names = [name for name in ("port", "ws_port", "status_port", "metrics_port") if values[name]]
    if not values["port"] and not values["ws_port"]:
        raise SettingsError("--port and --ws-port are both 0, but clients need one of them.")
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            if values[name] == values[other]:
                first, second = (flag.replace("_", "-") for flag in (name, other))
                raise SettingsError(
                    f"--{second} got {values[other]}, but takes another port than --{first},"
                    " which has it already."
                )


def _check_access(values: dict[str, Any]) -> None:
    """Refuse a server that is open by mistake, and files that do not go together."""
    if values["require_auth"] and not values["auth_keys_file"]:
        raise SettingsError("--require-auth is on, but --auth-keys-file names no file of keys.")
    if bool(values["tls_cert"]) != bool(values["tls_key"]):
        raise SettingsError("--tls-cert and --tls-key go together, but only one was given.")
    if values["tls_client_ca"] and not values["tls_cert"]:
        raise SettingsError("--tls-client-ca was given, but without --tls-cert there is no TLS.")
    if not values["status_host"]:
        values["status_host"] = "127.0.0.1" if values["auth_keys_file"] else values["host"]


def _check_redis(values: Mapping[str, Any]) -> None:
    """Refuse files for Redis that do not go together, or that no address uses."""
    if bool(values["redis_tls_cert"]) != bool(values["redis_tls_key"]):
        raise SettingsError("--redis-tls-cert and --redis-tls-key go together, but only one was given.")
    for name in ("redis_tls_ca", "redis_tls_cert", "redis_tls_server_name"):
        if values[name] and not any(url.lower().startswith("rediss") for url in values["redis_url"]):
            raise SettingsError(
                f"--{name.replace('_', '-')} was given, but no address of --redis-url begins with rediss."
            )
    if values["redis_password_file"] and not values["redis_url"]:
        raise SettingsError("--redis-password-file was given, but without --redis-url there is no password.")


def _check_model(model: str) -> None:
    """Refuse a model that is neither a path nor a possible hub id, before a worker is started for it."""
    is_hub_id = HUB_ID.fullmatch(model) and not model.endswith(".nemo")
    if model and not is_hub_id and not Path(model).exists():
        raise SettingsError(
            f"--model got {model!r}, but takes a folder, a .nemo file, or a hub id like owner/name."
        )


_LAST_PORT = 65_535


def can_have_lanes() -> bool:
    """Return whether this machine's processor keeps the order that lanes rely on."""
    return platform.machine() in _ORDERED_MACHINES


def _check_lanes(values: dict[str, Any]) -> None:
    """Refuse lanes on machines that cannot have them.

    Their memory has no locks: what one side stores in order, the other sees in order. That holds on x86-64
    alone.
    """
    lanes, streams, machine = values["lanes"], values["worker_max_streams"], platform.machine()
    if values["backend"] == "nemo":
        raise SettingsError(f"--lanes got {lanes}, but takes 1 with --backend nemo.")
    if values["metrics_port"] + lanes > _LAST_PORT:
        raise SettingsError(
            f"--metrics-port got {values['metrics_port']}, but takes at most {_LAST_PORT - lanes}"
            f" with --lanes {lanes}: each lane has a port behind it."
        )
    if streams < lanes:
        raise SettingsError(
            f"--lanes got {lanes}, but takes no more than there are streams: "
            f"--worker-max-streams is {streams}."
        )
    if not can_have_lanes():
        raise SettingsError(f"--lanes got {lanes}, but takes 1 on {machine}: lanes need an x86-64 processor.")


def _check(command: str, values: dict[str, Any]) -> None:
    """Fill in what depends on other flags, and refuse values that do not go together."""
    if command in {"serve", "ingress"}:
        _check_ports(values)
        _check_access(values)
    if command in {"serve", "worker"} and values["worker_max_streams"] is None:
        values["worker_max_streams"] = values["max_num_streams"]
    if command in {"serve", "worker", "check"}:
        if values["model"] and values["backend"] == "null":
            raise SettingsError("--model got a model, but --backend null takes none.")
        _check_model(values["model"])
        if values.get("paged_kv_cache") and values["device"] == "cpu":
            raise SettingsError("--paged-kv-cache got on, but takes off or auto with --device cpu.")
    if command == "serve" and 2 * (values["chunk_ms"] or 0) > 1000 * values["max_stream_seconds"]:
        raise SettingsError(
            f"--max-stream-seconds got {values['max_stream_seconds']}, but takes at least two chunks of"
            f" --chunk-ms {values['chunk_ms']}: a stream would wait for a chunk that never fills."
        )
    if command in {"serve", "worker"} and values["lanes"] > 1:
        _check_lanes(values)
    if "redis_url" in values:
        _check_redis(values)
    if command in {"serve", "ingress", "worker"}:
        values["redis_shards"] = max(values["redis_shards"], len(values["redis_url"]))
    if command == "transcribe" and re.match(r"(ws|tcp)s?://", values["source"]):
        raise SettingsError(f"{values['source']} is the address of a server, for --url; FILE is missing.")
    if command == "transcribe" and bool(values["source"]) == values["mic"]:
        raise SettingsError("transcribe takes either one FILE (or -) or --mic.")


def _take(kind: type[_T], values: Mapping[str, Any]) -> _T:
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]


@overload
def parse(
    command: Literal["ingress"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> IngressSettings: ...
@overload
def parse(
    command: Literal["worker"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> WorkerSettings: ...
@overload
def parse(
    command: Literal["serve"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> ServeSettings: ...
@overload
def parse(
    command: Literal["status"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> StatusSettings: ...
@overload
def parse(
    command: Literal["health"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> HealthSettings: ...
@overload
def parse(
    command: Literal["transcribe"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> TranscribeSettings: ...
@overload
def parse(
    command: Literal["check"], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> CheckSettings: ...
def parse(command: str, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """Return the checked settings of a command.

    Arguments: `argv` without the program's and the command's name; `environ` (the process's own where
    None). Raises SettingsError with one sentence for the user. `--help` prints and leaves the process.
    """
    values = _resolve(command, argv, os.environ if environ is None else environ)
    if "lanes" in values:
        values["choose_lanes"] = values["lanes"] is None
        values["lanes"] = values["lanes"] or 1
    _check(command, values)
    if command == "ingress":
        values["ingress_id"] = values["ingress_id"] or new_process_id("i")
        return _take(IngressSettings, values)
    if command == "worker":
        values["worker_id"] = values["worker_id"] or new_process_id("w")
        return _take(WorkerSettings, values)
    if command == "serve":
        values |= {"ingress_id": new_process_id("i"), "worker_id": new_process_id("w")}
        values["ingress"] = _take(IngressSettings, values)
        values["worker"] = _take(WorkerSettings, values)
        return _take(ServeSettings, values)
    if command == "status":
        return _take(StatusSettings, values)
    if command == "health":
        return _take(HealthSettings, values)
    if command == "transcribe":
        return _take(TranscribeSettings, values)
    if command == "check":
        return _take(CheckSettings, values)
    raise SettingsError(f"{PROGRAM} knows no command {command!r}.")


@overload
def parse_or_exit(command: Literal["ingress"], argv: Sequence[str] | None = None) -> IngressSettings: ...
@overload
def parse_or_exit(command: Literal["worker"], argv: Sequence[str] | None = None) -> WorkerSettings: ...
def parse_or_exit(command: Any, argv: Sequence[str] | None = None) -> Settings:
    """Run `parse` for a `main`: a wrong value ends it with one sentence on stderr and exit status 2."""
    try:
        parsed: Settings = parse(command, sys.argv[1:] if argv is None else argv)
    except SettingsError as error:
        complain(f"{PROGRAM} {command}: {error}")
        raise SystemExit(2) from None
    return parsed


def serve_argv(settings: CheckSettings) -> list[str]:
    """Return the flags of the `serve` that `check` starts."""
    names = {flag.name for flag in flags_of("serve")}
    flags = (flag for flag in flags_of("check") if flag.name in names)
    return [f"{flag.option}={flag.kind.format(getattr(settings, flag.name))}" for flag in flags]


def child_argv(settings: IngressSettings | WorkerSettings) -> list[str]:
    """Return the flags of a child process: those that differ from the defaults, except `SECRET_FLAGS`."""
    command = "ingress" if isinstance(settings, IngressSettings) else "worker"
    argv: list[str] = []
    for flag in flags_of(command):
        value = getattr(settings, flag.name)
        if flag.name not in SECRET_FLAGS and value != flag.kind.parse(flag.default_for(command)):
            argv += [f"{flag.option}={flag.kind.format(value)}"]
    return argv


def plain_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment (this process's where None) without our variables."""
    inherited = os.environ if environ is None else environ
    ours = {flag.variable for flag in FLAGS}
    return {name: value for name, value in inherited.items() if name not in ours}


def child_environment(
    settings: IngressSettings | WorkerSettings, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a child process: ours, its PARAKEET_ variables replaced by `SECRET_FLAGS`."""
    child = plain_environment(environ)
    for flag in FLAGS:
        if flag.name in SECRET_FLAGS and (text := flag.kind.format(getattr(settings, flag.name))):
            child[flag.variable] = text
    return child
