"""The page while the server behind it is killed, comes back, and goes away for good."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chromium import PROGRAM, Chromium
from tests.e2e.clients.test_page import RECORDING, TEXT, transcript
from tests.e2e.serve_process import ServeProcess
from tests.ports import HOST
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed (Debian: chromium)"),
]


@pytest.fixture(scope="module")
def serve() -> Iterator[ServeProcess]:
    flags = (
        "--backend",
        "native",
        "--model-size",
        "tiny",
        "--drain-timeout-s",
        "1",
        "--resume-grace-s",
        "3600",
    )
    with ServeProcess(*flags) as serve:
        serve.wait_until_ready()
        yield serve


@pytest.fixture
def browser(tmp_path: Path, serve: ServeProcess) -> Iterator[Chromium]:
    with Chromium(tmp_path, RECORDING) as browser:
        browser.open(f"http://{HOST}:{serve.ws_port}/")
        yield browser


def ingress(serve: ServeProcess) -> psutil.Process:
    return serve.child("ingress")


def events(browser: Chromium) -> str:
    return str(browser.evaluate("document.querySelector('#events').textContent"))


def kill_while(browser: Chromium, serve: ServeProcess, number: int) -> None:
    """Kill the ingress, and wait until the page says so."""
    process = ingress(serve)
    process.send_signal(number)
    wait_until(lambda: "connection was lost" in browser.text("#status"), what="the sentence")


def connected_streams(serve: ServeProcess) -> int:
    with socket.create_connection((HOST, serve.status_port), timeout=60) as connection:
        return int(json.loads(connection.makefile().read())["connected_streams"])


def test_a_page_that_is_left_gives_its_slot_back(browser: Chromium, serve: ServeProcess) -> None:
    """Its stream has the option `resume`, and would wait for a client that does not come."""
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Listening", what="the microphone")
    wait_until(lambda: connected_streams(serve) == 1, what="the stream")
    browser.call("Page.navigate", url="about:blank")
    wait_until(lambda: connected_streams(serve) == 0, what="its end")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_recording_loses_no_word_to_an_ingress_that_ends(
    browser: Chromium, serve: ServeProcess, number: int
) -> None:
    """It is killed, or drains; `serve` starts another one."""
    browser.evaluate("document.querySelector('[name=real_time]').checked = true")
    browser.choose_file("#file", RECORDING)
    wait_until(lambda: browser.text("#seconds") == "0:01", what="a second of sound")
    kill_while(browser, serve, number)
    wait_until(lambda: browser.text("#status") == "Done", what="the end of the recording")
    assert transcript(browser) == TEXT
    told = events(browser)
    assert told.index("connection lost") < told.index("connected again")


def test_a_microphone_is_heard_again_and_a_server_that_stays_away_is_told(
    browser: Chromium, serve: ServeProcess
) -> None:
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Listening", what="the microphone")
    wait_until(lambda: len(transcript(browser).split()) >= 1, what="words")
    kill_while(browser, serve, signal.SIGKILL)
    words = len(transcript(browser).split())
    wait_until(lambda: browser.text("#status") == "Listening", what="the next ingress")
    wait_until(lambda: len(transcript(browser).split()) > words, what="more words")
    serve.process.kill()
    wait_until(lambda: "may lack its end" in browser.text("#status"), what="the last sentence")
    assert browser.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "false"
    assert len(transcript(browser).split()) > words, "what was heard is kept"
