"""The unit and its drop-ins: systemd reads them, and their settings are ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from common.process.stop_times import STOP_MARGIN_S
from common.settings import FLAGS, parse

FOLDER: Final = Path("deploy/systemd")
UNIT: Final = FOLDER / "parakeet-server.service"
DROP_INS: Final = sorted((FOLDER / "parakeet-server.service.d").glob("*.conf"))
# Of systemd-analyze, from 0 to 10. A GPU's devices and code that is made at run time cost some.
_MOST_EXPOSED: Final = 3.5


def variables(path: Path) -> dict[str, str]:
    """Settings that a unit, a drop-in or the file of the environment makes."""
    return dict(re.findall(r"^(?:Environment=)?(PARAKEET_\w+)=(.*)$", path.read_text(), re.MULTILINE))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with both drop-ins; the program that it starts is one that exists."""
    folder = tmp_path / "parakeet-server.service.d"
    folder.mkdir()
    text = UNIT.read_text()
    assert text.count("/opt/parakeet/bin/parakeet-server") == 1
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/parakeet/bin/parakeet-server", "/bin/sleep"))
    for drop_in in DROP_INS:
        shutil.copy(drop_in, folder)
    return unit


@pytest.mark.needs_program("systemd-analyze")
def test_systemd_reads_the_unit_and_its_drop_ins(installed: Path) -> None:
    for command in (["verify", "--man=no"], ["security", "--offline=true", "--no-pager"]):
        run = subprocess.run(
            ["systemd-analyze", *command, str(installed)], capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stdout + run.stderr
        if command[0] == "verify":
            assert not [line for line in run.stderr.splitlines() if "parakeet-server" in line]
        else:
            exposure = re.search(r"exposure level .*: ([0-9.]+) ", run.stdout)
            assert exposure is not None, run.stdout
            assert float(exposure[1]) <= _MOST_EXPOSED


def test_every_setting_is_a_flag_of_serve() -> None:
    paths = (UNIT, FOLDER / "parakeet-server.env", *DROP_INS)
    together = {name: value for path in paths for name, value in variables(path).items()}
    known = {flag.variable for flag in FLAGS if "serve" in flag.commands}
    assert set(together) <= known
    settings = parse("serve", [], together)
    assert settings.ingress.require_auth
    assert settings.ingress.redis_url == ("rediss://parakeet-serve@redis.example:6379/0",)


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.stem)
def test_every_file_is_a_credential(path: Path) -> None:
    text = path.read_text()
    given = set(re.findall(r"^LoadCredential=([^:]+):/etc/parakeet/", text, re.MULTILINE))
    used = {value.removeprefix("%d/") for value in variables(path).values() if value.startswith("%d/")}
    assert given == used
    assert given


def test_the_unit_waits_for_the_whole_drain() -> None:
    drain_s = parse("serve", [], {}).ingress.drain_timeout_s
    (waits,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(waits) >= 2 * (drain_s + STOP_MARGIN_S) + 5
