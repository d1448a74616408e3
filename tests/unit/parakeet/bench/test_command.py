"""`parakeet-server bench`: what it refuses before it connects."""

from __future__ import annotations

import pytest

from parakeet.bench.command import main


@pytest.mark.parametrize("scheme", ["ws", "tcp"])
def test_an_address_where_nobody_answers_is_a_failure(
    capsys: pytest.CaptureFixture[str], free_port: int, scheme: str
) -> None:
    flags = ("--streams", "2", "--duration-s", "1", "--ramp-s", "0")
    assert main([f"{scheme}://127.0.0.1:{free_port}", *flags]) == 1
    captured = capsys.readouterr()
    assert f"no stream could be opened at {scheme}://127.0.0.1:{free_port}" in captured.err
    assert "p99.9" not in captured.out, "there is nothing to put into a table"


def test_a_recording_that_cannot_be_read_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ws://127.0.0.1:9", "--recordings", "none.wav"]) == 1
    assert "none.wav cannot be opened: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--api-key", "pk_…"), "--api-key must be visible ASCII without spaces"),
        (("--streams", "many"), "--streams takes a number, or several such as 125,250,500, not 'many'"),
        (("--streams", "125,"), "--streams takes a number, or several such as 125,250,500, not '125,'"),
        (("--streams", "0"), "--streams must be above 0, got 0"),
        (("--duration-s", "nan"), "--duration-s must be a finite number, got nan"),
        (("--ramp-s", "inf"), "--ramp-s must be a finite number, got inf"),
        (("--stream-s", "nan"), "--stream-s must be a finite number, got nan"),
        (("--start-timeout-s", "nan"), "--start-timeout-s must be a finite number, got nan"),
        (
            ("--json", "/nowhere/a.json"),
            "--json /nowhere/a.json cannot be written: there is no folder /nowhere",
        ),
        (("--plot", "/"), "--plot / cannot be written: it is a folder"),
        (("--plot", "a.xyz"), "--plot takes a file that ends in .png, .svg, .pdf, not a.xyz"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ws://127.0.0.1:9", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
