"""`parakeet-server bench`: what it refuses before it connects."""

from __future__ import annotations

import pytest

from parakeet.bench.command import main


def test_a_key_that_no_header_can_carry_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ws://127.0.0.1:9", "--api-key", "pk_…"])
    assert ended.value.code == 2
    assert "--api-key must be visible ASCII without spaces" in capsys.readouterr().err
