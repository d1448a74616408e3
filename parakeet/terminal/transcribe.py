"""The command `parakeet-server transcribe`: transcribes a recording, stdin or the microphone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import asdict

from common.addresses import host_and_port
from common.errors import ClientFault, SettingsError
from common.messages import Result
from common.options import StreamOptions
from common.phrases import Phrase, parse_phrases, read_phrases_file
from common.settings import TranscribeSettings
from parakeet.audio.errors import BadAudio
from parakeet.audio.source import MicrophoneSource, Source, open_source
from parakeet.client import ClientError, transcribe
from parakeet.terminal.live_text import LiveText
from parakeet.terminal.progress import Progress
from parakeet.terminal.transcript import NoOutput, Transcript, check_output, format_of, write_output


def run_transcribe(settings: TranscribeSettings) -> int:
    """Print the text of the audio; partial results and progress change in place on a terminal's stderr.

    Raises ClientError, BadAudio or NoOutput after the text so far has been written, and SettingsError before
    any text is.
    """
    format_name = settings.format if settings.format != "auto" else format_of(settings.output)
    if settings.output:
        check_output(settings.output)
    # Opened before the connection, so that a wrong path takes no stream.
    source: Source = MicrophoneSource() if settings.mic else open_source(settings.source, settings.input_rate)
    return _Run(settings, source, format_name).run()


def _phrases(settings: TranscribeSettings) -> tuple[Phrase, ...]:
    """Return the phrases of the flag and of the file. Raises SettingsError."""
    named = [text for text in settings.phrases.split(",") if text.strip()]
    try:
        phrases = (*parse_phrases(named), *read_phrases_file(settings.phrases_file))
        return parse_phrases([{"text": phrase.text, "boost": phrase.boost} for phrase in phrases])
    except ClientFault as error:
        raise SettingsError(f"--phrases, --phrases-file: {error}") from error


class _Run:
    """One transcription: its display while it runs, and the transcript at its end."""

    def __init__(self, settings: TranscribeSettings, source: Source, format_name: str) -> None:
        self._settings = settings
        self._source = source
        self._format = format_name
        self._transcript = Transcript(source.rate)
        self._on_terminal = sys.stderr.isatty() and not settings.json
        self._live = LiveText(sys.stderr, partials=self._on_terminal)
        # Live speech may have any length, so ended utterances stay readable.
        self._endless = settings.mic or (settings.source == "-" and source.seconds is None)
        self._stop = asyncio.Event()
        # Live audio has no speed to report.
        timed = not (settings.mic or settings.real_time)
        self._progress = Progress(source.seconds, time.monotonic) if timed else None

    def run(self) -> int:
        """Stream the audio and write the transcript; return the exit status."""
        failure: ClientError | BadAudio | None = None
        try:
            asyncio.run(self._transcribe())
        except (ClientError, BadAudio) as error:
            failure = error
        self._live.clear()
        if failure is None or self._transcript.text:
            self._write()
        if failure is not None:
            raise failure
        if not self._transcript.seconds:
            raise BadAudio(f"{self._settings.source or 'The microphone'} holds no audio.")
        return 0

    async def _transcribe(self) -> None:
        settings = self._settings
        with contextlib.suppress(NotImplementedError):  # event loops of Windows have no signal handlers
            # Ctrl-C ends the audio; the final text still comes.
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._stop_or_leave)
        with_times = self._format != "txt"
        options = StreamOptions(
            words=settings.words or with_times,
            auto_finalize=with_times,
            language=settings.language or None,
            phrases=_phrases(settings),
        )
        try:
            await transcribe(
                settings.url or f"ws://{host_and_port(settings.host, settings.ws_port)}",
                self._source,
                options=options,
                on_result=self._show,
                message_ms=settings.message_ms,
                real_time=settings.real_time,
                recording=settings.recording,
                stop=self._stop,
                api_key=settings.api_key or None,
            )
        except ValueError as error:  # an invalid address
            raise SettingsError(f"--url got {settings.url!r}: {error}") from error

    def _show(self, result: Result) -> None:
        self._transcript.add(result)
        if self._settings.json:
            sys.stdout.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif self._on_terminal:
            bar = "" if self._progress is None else self._progress.bar(self._transcript.seconds)
            if self._endless and result.turn_detection == "end_of_utterance":
                self._live.keep(result.text)
            self._live.show(result.text, bar)
        elif self._progress is not None and (line := self._progress.line(self._transcript.seconds)):
            sys.stderr.write(f"{line}\n")

    def _write(self) -> None:
        text = self._transcript.written(self._format, words=self._settings.words)
        if self._settings.output:
            try:
                write_output(self._settings.output, text)
            except NoOutput:
                if not self._settings.json:  # else its results are there already
                    sys.stdout.write(text)
                raise
        elif not self._settings.json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def _stop_or_leave(self) -> None:
        """First Ctrl-C: end the audio. Second: leave at once."""
        if self._stop.is_set():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self._stop.set()
