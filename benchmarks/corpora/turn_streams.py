"""Streams of thirty real clips, as `benchmarks.wer` sends them, with the ends of their speech.

Nothing is put in, and no speech is left out: a clip of two sentences has one end, and one that is reported
between them is false. Clips without speech have no end and are not among them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora.asterisk import RATE
from benchmarks.corpora.clips import GAP_S, LEAD_S, TAIL_S, read_clips, streams
from benchmarks.corpora.turn_corpus import Session, Utterance, speech_span

SOURCE: Final = "streams"
CLIPS_A_STREAM: Final = 30


def stream_sessions(usr: Path, max_asterisk: int = 120) -> Iterator[Session]:
    """Asterisk's clips thirty a stream, then LibriVox' in one.

    Args:
        usr: where Debian's packages put their files.
        max_asterisk: clips that are drawn; the default is the sample of `benchmarks.wer`.

    Raises FileNotFoundError where a package is missing.
    """
    number = 0
    for source in ("asterisk", "librivox"):
        clips = read_clips([source], usr, max_asterisk)
        for index, (samples, _) in enumerate(streams(clips, CLIPS_A_STREAM)):
            utterances = []
            position = round(LEAD_S * RATE)
            for clip in clips[index * CLIPS_A_STREAM : (index + 1) * CLIPS_A_STREAM]:
                speech: NDArray[np.float32] = (clip.samples / 32_768).astype(np.float32)
                start, end = speech_span(speech)
                utterances.append(Utterance(position + start, position + end, 0))
                position += len(clip.samples) + round(GAP_S * RATE)
            assert position - round(GAP_S * RATE) + round(TAIL_S * RATE) == len(samples)
            audio = (samples / 32_767).astype(np.float32)
            yield Session(f"{SOURCE}-{number}", SOURCE, audio, tuple(utterances))
            number += 1
