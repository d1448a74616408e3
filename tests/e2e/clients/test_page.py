"""The page in a real browser, with a recording and with a microphone that plays one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import PROGRAM, Chromium
from tests.e2e.serve_process import ServeProcess
from tests.ports import HOST
from tests.service_process import ROOT
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed (Debian: chromium)"),
]

RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"
TEXT = "go forward ten meters"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ServeProcess("--backend", "native", "--model-size", "tiny") as serve:
        serve.wait_until_ready()
        yield f"http://{HOST}:{serve.ws_port}/"


@pytest.fixture
def browser(tmp_path: Path, address: str) -> Iterator[Chromium]:
    with Chromium(tmp_path, RECORDING) as browser:
        browser.open(address)
        yield browser
        assert browser.console == []


def transcript(browser: Chromium) -> str:
    """Return the words on the page."""
    return str(
        browser.evaluate(
            "[...document.querySelectorAll('.word')].map((word) => word.textContent.trim()).join(' ')"
        )
    )


def test_a_recording_is_transcribed_and_saved(browser: Chromium) -> None:
    browser.choose_file("#file", RECORDING)
    wait_until(lambda: browser.text("#status") == "Done", what="the end of the recording")
    assert transcript(browser) == TEXT
    assert browser.evaluate("document.querySelectorAll('.partial').length") >= 1
    assert browser.text(".partial") == "not final"
    assert "end of utterance" in str(browser.evaluate("document.querySelector('#events').textContent"))
    assert browser.text("#latency").endswith(" ms")
    assert browser.text("#turn") == "–", "nobody speaks any more"
    # Rows of pixels: sound and turns above the axis, nothing between them and its labels.
    drawn = browser.evaluate(
        "(() => { const canvas = document.querySelector('#timeline');"
        " const scale = canvas.height / canvas.clientHeight;"
        " const pen = canvas.getContext('2d');"
        " const { width, data } = pen.getImageData(0, canvas.height - 20 * scale, canvas.width, 20 * scale);"
        " const row = (down) => data.slice(down * scale * width * 4, (down * scale + 1) * width * 4);"
        " return [row(0), row(7)].map((pixels) => pixels.some((part) => part > 0)); })()"
    )
    assert drawn == [True, False]
    srt = browser.evaluate(
        "new Promise((resolve) => {"
        " URL.createObjectURL = (blob) => { blob.text().then(resolve); return '#'; };"
        " document.querySelector('#save-srt').click(); })"
    )
    assert srt.startswith("1\n00:00:0")
    assert srt.endswith(f"\n{TEXT}\n")


def test_the_microphone_is_heard_until_it_is_stopped(browser: Chromium) -> None:
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Listening", what="the microphone")
    assert browser.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "true"
    # The browser plays with gaps on a busy machine and resamples twice, so this small model mishears words;
    # it plays again and again, so others come.
    wait_until(
        lambda: len(set(transcript(browser).split()) & set(TEXT.split())) >= 2, what="words of the microphone"
    )
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Done", what="the end")
    assert len(set(transcript(browser).split()) & set(TEXT.split())) >= 2


def test_a_second_click_opens_no_second_microphone(browser: Chromium) -> None:
    """A second one went on to listen when the page said "Done"."""
    locked = browser.evaluate(
        "(() => { const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);"
        " window.opened = [];"
        " devices.getUserMedia = async (asked) => { opened.push(await ask(asked)); return opened.at(-1); };"
        " const button = document.querySelector('#microphone');"
        " button.click(); button.click();"
        " return document.querySelector('#file').disabled; })()"
    )
    assert locked, "no recording begins meanwhile"
    wait_until(lambda: browser.text("#status") == "Listening", what="the microphone")
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Done", what="the end")
    states = browser.evaluate(
        "opened.map((media) => media.getTracks().map((track) => track.readyState).join())"
    )
    assert states == ["ended"]


def test_sound_behind_the_end_is_dropped(browser: Chromium) -> None:
    told = browser.evaluate(
        "import('./assets/stream.js').then(async ({ Stream }) => {"
        " const stream = new Stream(location.href.replace('http', 'ws'), 16000, {}, '');"
        " const told = [];"
        " const ended = new Promise((resolve) => stream.addEventListener('end', resolve));"
        " stream.addEventListener('error', (event) => told.push(event.detail.message));"
        " await stream.opened;"
        " stream.push(new Float32Array(16000));"
        " stream.finish();"
        " stream.push(new Float32Array(16000));"
        " await ended;"
        " return [told, stream.secondsSent]; })"
    )
    assert told == [[], 1]


def test_an_error_of_the_server_is_told_and_the_next_stream_begins(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('[name=language]').value = 'tlh'")
    browser.click("#microphone")
    wait_until(lambda: "language" in browser.text("#status"), what="the sentence")
    assert browser.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "false"
    browser.evaluate("document.querySelector('[name=language]').value = ''")
    browser.choose_file("#file", RECORDING)
    wait_until(lambda: browser.text("#status") == "Done", what="the next recording")


def test_a_microphone_that_is_unplugged_ends_its_stream(browser: Chromium) -> None:
    browser.evaluate(
        "void (() => { const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);"
        " devices.getUserMedia = async (asked) => window.media = await ask(asked); })()"
    )
    browser.click("#microphone")
    wait_until(lambda: browser.text("#status") == "Listening", what="the microphone")
    # What the browser does when the device is gone.
    browser.evaluate("media.getTracks()[0].stop(), media.getTracks()[0].dispatchEvent(new Event('ended'))")
    wait_until(lambda: not browser.evaluate("document.querySelector('#file').disabled"), what="the end")
    assert "microphone is gone" in browser.text("#status")
    assert browser.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "false"


def test_a_recording_goes_on_where_timers_stand_still(browser: Chromium) -> None:
    """As in a hidden tab, where a timer may wait for a minute."""
    browser.evaluate("void (window.setTimeout = () => 0)")
    browser.choose_file("#file", RECORDING)
    wait_until(lambda: browser.text("#status") == "Done", what="the end of the recording")
    assert transcript(browser) == TEXT


def test_new_text_is_put_in_its_place(browser: Chromium) -> None:
    """The server sends the new part of the text alone; another worker may replace some words."""
    texts = browser.evaluate(
        "import('./assets/stream.js').then(async ({ Stream }) => {"
        " const texts = [];"
        " window.WebSocket = class {"
        "  static OPEN = 1; readyState = 1; bufferedAmount = 0;"
        "  constructor() { window.socket = this; }"
        "  send(message) { texts.push(JSON.parse(message).text); }"
        "  close() {} };"
        " const stream = new Stream('ws://server/', 16000, {}, '');"
        " stream.addEventListener('result', (event) => texts.push(event.detail.text));"
        " socket.onmessage({ data: JSON.stringify({ type: 'hello', stream_id: 1, capabilities: [] }) });"
        " await stream.opened;"
        " let seq = 0;"
        " for (const [text_from, text] of [[0, 'go \\u{1F980} on'], [4, '!'], [4, ' forward'], [12, ' ten']])"
        "  socket.onmessage({ data: JSON.stringify({ type: 'result', seq: ++seq, text, text_from }) });"
        " while (texts.length < 5) await new Promise((resolve) => setTimeout(resolve, 5));"
        " return texts; })"
    )
    crab = "go \U0001f980"
    assert texts == ["new", f"{crab} on", f"{crab}!", f"{crab} forward", f"{crab} forward ten"]


def test_a_file_that_is_no_recording_is_told(browser: Chromium, tmp_path: Path) -> None:
    wrong = tmp_path / "notes.wav"
    wrong.write_text("this is no sound")
    browser.choose_file("#file", wrong)
    wait_until(lambda: "cannot decode notes.wav" in browser.text("#status"), what="the sentence")
    browser.choose_file("#file", RECORDING)
    wait_until(lambda: browser.text("#status") == "Done", what="the next recording")
    assert transcript(browser) == TEXT


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(browser: Chromium, dark: bool) -> None:
    browser.resize(360, 740, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(16, 22, 21)" if dark else "rgb(247, 248, 248)")


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('details').open = true")
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('button, input, [role=meter], [role=log]')].filter((control) =>"
        " !(control.textContent.trim() || control.getAttribute('aria-label') || control.labels?.length"
        " || control.getAttribute('aria-labelledby'))).map((control) => control.id || control.name)"
    )
    assert unnamed == []
    assert browser.evaluate("[...document.querySelectorAll('[tabindex]')].every((one) => one.tabIndex === 0)")
