"""Settings of every process, from flags, environment and defaults; nothing else reads the environment."""

from common.errors import SettingsError
from common.settings.parse import (
    PROGRAM,
    build_parser,
    child_argv,
    child_environment,
    flags_of,
    host_stem,
    is_made_up,
    lane_ids,
    new_process_id,
    parse,
    parse_or_exit,
    plain_environment,
    serve_argv,
)
from common.settings.schema import (
    CheckSettings,
    ClusterSettings,
    HealthSettings,
    IngressSettings,
    RedisSettings,
    ServeSettings,
    StatusSettings,
    TranscribeSettings,
    WorkerSettings,
)
from common.settings.table import COMMANDS, FLAGS, Flag

__all__ = [
    "COMMANDS",
    "FLAGS",
    "PROGRAM",
    "CheckSettings",
    "ClusterSettings",
    "Flag",
    "HealthSettings",
    "IngressSettings",
    "RedisSettings",
    "ServeSettings",
    "SettingsError",
    "StatusSettings",
    "TranscribeSettings",
    "WorkerSettings",
    "build_parser",
    "child_argv",
    "child_environment",
    "flags_of",
    "host_stem",
    "is_made_up",
    "lane_ids",
    "new_process_id",
    "parse",
    "parse_or_exit",
    "plain_environment",
    "serve_argv",
]
