"""Speech with known ends and known pauses, for `benchmarks.turns`: made at bench time, none of it shipped.

A session is one stream: utterances with 1.5 to 3.5 s of silence between them over a noise floor. Sources:

- `asterisk`: a human studio voice, Debian's asterisk-core-sounds-en-g722 (CC-BY-SA-3.0), unpacked or
  installed; read with ffmpeg. Only clips with speech, of 1.75 to 6 s, without a gap of 250 ms or more: a
  transcript does not say whether a longer one divides two sentences.
- `espeak`: synthetic, espeak-ng in eight voices, sentences of this file.
- `recordings`: the recordings bundled with this package.

A third of the utterances of the first two carry a hesitation: silence of 200 to 1,000 ms put into them
between two words. An utterance ends at its last 10 ms frame within 35 dB of its loud frames. Sessions
of even number are for choosing settings (`dev`), of odd number for the figures (`test`).
"""

import json
import random
import subprocess
import wave
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora.asterisk import RATE, read_g722, recordings_of, spoken, texts_of

FRAME: Final = 160
UTTERANCES_OF_SESSION: Final = 5
NOISE_DBFS: Final = -60.0
MAX_GAP_S: Final = 0.25

VOICES: Final = (
    "en-us",
    "en-us+f3",
    "en-us+m4",
    "en-gb",
    "en-gb+f4",
    "en-gb-scotland",
    "en-gb-x-rp+f2",
    "en-us+m7",
)

SENTENCES: Final = (
    "i would like to book a table | for four people on friday evening",
    "could you tell me | when the next train to the airport leaves",
    "my order number is seven two nine | four four one",
    "the parcel was supposed to arrive | on monday but it never came",
    "please send the invoice | to my office address",
    "i think the problem started | after i installed the update",
    "no that is not | what i asked for",
    "we are looking for a hotel | near the old harbour",
    "can you move my appointment | to the week after next",
    "the kitchen light flickers | whenever the fridge starts",
    "i want to cancel | my subscription at the end of the month",
    "turn off the heating | in the living room",
    "she said that the meeting | would be about the new budget",
    "how much would it cost | to ship it to norway",
    "i have been waiting | for more than half an hour",
    "there is a charge on my card | that i do not recognise",
    "what is the weather going to be like | in edinburgh tomorrow",
    "remind me to call my sister | when i get home",
    "the blue one is too small | so i would like the next size",
    "is it possible to pay | with two different cards",
    "we need about twelve chairs | and three long tables",
    "my password does not work | on the new phone",
    "please read the last message | once again",
    "the doctor told me | to come back in two weeks",
    "i am calling about the flat | on mill street",
    "yes | that sounds good to me",
    "let me check | whether i have the letter here",
    "the second floor window | does not close properly",
    "we drove through the valley | until the road ended",
    "it depends on | how many people are coming",
    "add eggs milk and bread | to the shopping list",
    "the museum closes | at half past five on sundays",
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """Samples [start, end) of a session in which one utterance is spoken, and the pause put into it."""

    start_sample: int
    end_sample: int
    pause_samples: int


@dataclass(frozen=True, slots=True)
class Session:
    """One stream of the bench: float32 audio at 16 kHz and where its utterances lie."""

    name: str
    source: str
    samples: NDArray[np.float32]
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True, slots=True)
class _Clip:
    samples: NDArray[np.float32]
    pause_samples: int


def build(
    sources: Sequence[str], *, recordings: Path, usr: Path, max_clips: int, seed: int = 8
) -> list[Session]:
    """Return all sessions of the named sources; equal seeds and packages make equal sessions.

    Args:
        sources: of "asterisk", "espeak", "recordings".
        recordings: folder of the bundled recordings.
        usr: where Debian's packages put their files.
        max_clips: utterances of a source at most.
        seed: of random choices.

    Raises FileNotFoundError if a package is missing.
    """
    makers = {
        "asterisk": lambda rng: _asterisk(usr, rng, max_clips),
        "espeak": lambda rng: _espeak(rng, max_clips),
        "recordings": lambda rng: _recordings(recordings),
    }
    sessions: list[Session] = []
    for source in sources:
        rng = random.Random(f"{seed} {source}")
        clips = list(makers[source](rng))
        for index in range(0, len(clips), UTTERANCES_OF_SESSION):
            number = index // UTTERANCES_OF_SESSION
            sessions.append(_session(source, number, clips[index : index + UTTERANCES_OF_SESSION], rng))
    return sessions


def save(sessions: Sequence[Session], path: Path) -> None:
    """Write sessions for a machine without ffmpeg, espeak-ng and the recordings."""
    labels = [
        {
            "name": session.name,
            "source": session.source,
            "utterances": [asdict(utterance) for utterance in session.utterances],
        }
        for session in sessions
    ]
    audio: dict[str, Any] = {
        session.name: np.rint(session.samples * 32_767).astype(np.int16) for session in sessions
    }
    np.savez_compressed(path, labels=np.array(json.dumps(labels)), **audio)


def load(path: Path) -> list[Session]:
    """Read the sessions of a file of `save`."""
    with np.load(path) as saved:
        return [
            Session(
                label["name"],
                label["source"],
                (saved[label["name"]] / 32_767).astype(np.float32),
                tuple(Utterance(**utterance) for utterance in label["utterances"]),
            )
            for label in json.loads(str(saved["labels"]))
        ]


def _session(source: str, number: int, clips: Sequence[_Clip], rng: random.Random) -> Session:
    parts: list[NDArray[np.float32]] = []
    utterances: list[Utterance] = []
    position = 0

    def silence(seconds: float) -> None:
        nonlocal position
        parts.append(np.zeros(round(seconds * RATE), np.float32))
        position += len(parts[-1])

    silence(rng.uniform(0.5, 1.5))
    for clip in clips:
        utterances.append(Utterance(position, position + len(clip.samples), clip.pause_samples))
        parts.append(clip.samples)
        position += len(clip.samples)
        silence(rng.uniform(1.5, 3.5))
    samples = np.concatenate(parts)
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples))
    noisy = samples + 10 ** (NOISE_DBFS / 20) * noise
    # As 16-bit audio would carry it, so that a session saved and read is the same.
    samples = (np.rint(np.clip(noisy, -1, 1) * 32_767) / 32_767).astype(np.float32)
    return Session(f"{source}-{number}", source, samples, tuple(utterances))


def _asterisk(usr: Path, rng: random.Random, max_clips: int) -> Iterator[_Clip]:
    texts = texts_of(usr)
    clips = [
        (name, path)
        for name, path in recordings_of(usr).items()
        if path.parent.name != "silence" and 14_000 <= path.stat().st_size <= 48_000
    ]
    rng.shuffle(clips)
    count = 0
    for name, path in clips:
        if count >= max_clips:
            return
        if not spoken(texts.get(name, "")):
            continue
        speech = _trim(_level(read_g722(path)))
        if len(speech) < RATE or _longest_gap(speech) >= MAX_GAP_S * RATE:
            continue
        count += 1
        yield _hesitate(speech, rng)


def _espeak(rng: random.Random, max_clips: int) -> Iterator[_Clip]:
    lines = [(voice, sentence) for sentence in SENTENCES for voice in VOICES]
    rng.shuffle(lines)
    for voice, sentence in lines[:max_clips]:
        hesitates = rng.random() < 1 / 3
        pause_ms = rng.randint(200, 1_000) if hesitates else 0
        middle = f'<break time="{pause_ms}ms"/>' if hesitates else ""
        text = f"<speak>{sentence.replace('|', middle)}</speak>"
        command = ["espeak-ng", "-m", "-v", voice, "-s", str(rng.randint(140, 185)), "--stdout", text]
        data = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
        resample = ["ffmpeg", "-v", "error", "-i", "-", "-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
        pcm = subprocess.run(resample, input=data, check=True, capture_output=True, timeout=30).stdout
        yield _Clip(_trim(_level(np.frombuffer(pcm, np.int16))), pause_ms * RATE // 1000)


def _recordings(folder: Path) -> Iterator[_Clip]:
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as recording:
            if (recording.getframerate(), recording.getnchannels()) != (RATE, 1):
                continue
            pcm = recording.readframes(recording.getnframes())
        yield _Clip(_trim(_level(np.frombuffer(pcm, np.int16))), 0)


def _level(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    """Loud frames at -20 dBFS, so that a noise floor means the same for every source."""
    samples = pcm.astype(np.float32) / 32_768
    loud = np.percentile(_frame_rms(samples), 95)
    return np.clip(samples * np.float32(0.1 / max(loud, 1e-6)), -1, 1)


def _frame_rms(samples: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    rms: NDArray[np.float64] = np.sqrt((frames**2).mean(axis=1))
    return rms


def _is_loud(samples: NDArray[np.float32]) -> NDArray[np.bool_]:
    rms = _frame_rms(samples)
    loud: NDArray[np.bool_] = rms > np.percentile(rms, 95) * 10 ** (-35 / 20)
    return loud


def speech_span(samples: NDArray[np.float32]) -> tuple[int, int]:
    """Return samples [start, end) from the first loud frame of a clip to its last."""
    loud = np.flatnonzero(_is_loud(samples))
    return int(loud[0]) * FRAME, (int(loud[-1]) + 1) * FRAME


def _trim(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    start, end = speech_span(samples)
    return samples[start:end]


def _gaps(samples: NDArray[np.float32]) -> list[tuple[int, int]]:
    """[start, end) in samples of each run of frames that are not loud."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], _is_loud(samples).astype(np.int8), [1]])))
    return [(int(a) * FRAME, int(b) * FRAME) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _longest_gap(samples: NDArray[np.float32]) -> int:
    return max((end - start for start, end in _gaps(samples)), default=0)


def _hesitate(samples: NDArray[np.float32], rng: random.Random) -> _Clip:
    """Put silence into a third of the clips, in a gap near the middle, too short to divide sentences."""
    pause = round(rng.uniform(0.2, 1.0) * RATE)
    gaps = [gap for gap in _gaps(samples) if 0.03 * RATE <= gap[1] - gap[0] <= 0.12 * RATE]
    if rng.random() >= 1 / 3 or not gaps:
        return _Clip(samples, 0)
    start, end = min(gaps, key=lambda gap: abs(sum(gap) - len(samples)))
    cut = (start + end) // 2
    return _Clip(
        np.concatenate([samples[:cut], np.zeros(pause, np.float32), samples[cut:]]),
        pause + end - start,
    )
