"""The demo's verdict: a wrong text, and a stack that does not start, are failures."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parakeet import demo


class _Stack:
    ws_port = 1

    def wait_until_ready(self) -> str:
        return "ready: all of it"


@contextmanager
def _running_stack() -> Iterator[_Stack]:
    yield _Stack()


@pytest.mark.parametrize(("rate", "status", "word"), [(0.0, 0, "demo passed"), (0.25, 1, "demo FAILED")])
def test_only_the_first_recordings_error_rate_decides(
    rate: float, status: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed: list[str] = []

    async def stream(_url: str, clip: demo.Clip) -> float:
        streamed.append(clip.path.name)
        return rate if len(streamed) == 1 else 1.0

    monkeypatch.setattr(demo, "_running_stack", _running_stack)
    monkeypatch.setattr(demo, "_stream", stream)
    assert demo.main() == status
    assert streamed == ["goforward.wav", "jfk.wav"]
    assert capsys.readouterr().out.splitlines()[-1] == word


def test_a_stack_that_does_not_start_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A process that ends at once, as serve does where a port is taken.
    monkeypatch.setattr(
        demo, "start_tied", lambda command, _env, *, output: subprocess.Popen(["false"], stdout=output)
    )
    assert demo.main() == 1
    assert "demo FAILED: The stack did not start" in capsys.readouterr().err


def test_every_bundled_clip_has_a_transcript() -> None:
    for name in ("goforward.wav", "jfk.wav"):
        assert demo.clip(name).text
        assert demo.clip(name).path.is_file()
