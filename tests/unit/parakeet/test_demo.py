"""The demo's verdict: a wrong text, and a stack that does not start, are failures."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parakeet import demo
from parakeet.check import local_stack
from parakeet.check.clips import Clip


class _Stack:
    ws_port = 1
    command = ("serve",)

    def wait_until_ready(self) -> str:
        return "ready: all of it"


@contextmanager
def _running(stack: _Stack) -> Iterator[_Stack]:
    yield stack


@pytest.mark.parametrize(("rate", "status", "word"), [(0.0, 0, "demo passed"), (0.25, 1, "demo FAILED")])
def test_only_the_first_recordings_error_rate_decides(
    rate: float, status: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed: list[str] = []

    async def stream(_url: str, clip: Clip) -> float:
        streamed.append(clip.path.name)
        return rate if len(streamed) == 1 else 1.0

    monkeypatch.setattr(demo, "LocalStack", lambda flags: _Stack())
    monkeypatch.setattr(demo, "running", _running)
    monkeypatch.setattr(demo, "_stream", stream)
    assert demo.main() == status
    assert streamed == ["goforward.wav", "jfk.wav"]
    assert word in capsys.readouterr().out.splitlines()[-2:]


@pytest.mark.parametrize(
    ("prefix", "enter"), [("/clone/.venv", "source .venv/bin/activate && "), ("/usr", "")]
)
def test_what_to_do_next_can_be_typed(prefix: str, enter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", prefix)
    monkeypatch.setattr("sys.base_prefix", "/usr")
    monkeypatch.setattr("os.getcwd", lambda: "/clone")
    assert demo.next_step() == (
        f"next: {enter}parakeet-server serve --model-size tiny, then open http://127.0.0.1:8000/"
    )


def test_a_stack_that_does_not_start_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A process that ends at once, as serve does where a port is taken.
    monkeypatch.setattr(
        local_stack, "start_tied", lambda command, _env, *, output: subprocess.Popen(["false"], stdout=output)
    )
    assert demo.main() == 1
    assert "demo FAILED: The stack did not start" in capsys.readouterr().err
