"""The voice prompts of Debian's asterisk-core-sounds-en-g722 and their transcripts (CC-BY-SA-3.0).

The transcripts also describe sounds, in brackets of three kinds: `<beep ascending>`, `(1 second of silence)`,
`[sound of monkeys screaming]`. Nobody speaks these.
"""

import gzip
import re
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 16_000
_TEXTS: Final = "share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_VOICE: Final = "share/asterisk/sounds/en_US_f_Allison"
_DESCRIBED: Final = re.compile(r"<[^<>]*>|\([^()]*\)|\[[^\[\]]*\]")
# Two keys of a telephone stand in the transcripts as they are printed on it.
_KEYS: Final = {"*": " star ", "#": " pound "}


def texts_of(usr: Path) -> dict[str, str]:
    """Return the transcripts as they are written, by name, also those without a recording.

    Args:
        usr: folder of the packages' files, `/usr` or a folder into which they were unpacked.

    Raises FileNotFoundError if the package is missing.
    """
    with gzip.open(usr / _TEXTS, "rt", encoding="utf-8", errors="replace") as file:
        lines = [line.partition(":") for line in file if not line.startswith(";") and ":" in line]
    return {name.strip(): text.strip() for name, _, text in lines}


def recordings_of(usr: Path) -> dict[str, Path]:
    """Return the recordings (`.g722`) by name, in the order of their paths.

    Raises FileNotFoundError if there is none.
    """
    folder = usr / _VOICE
    paths = sorted(folder.rglob("*.g722"))
    if not paths:
        raise FileNotFoundError(f"no clips under {folder}: apt-get install asterisk-core-sounds-en-g722")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def spoken(text: str) -> str:
    """Return what is spoken of a transcript: no descriptions, keys by their names; empty without speech."""
    text = _DESCRIBED.sub(" ", text)
    for key, name in _KEYS.items():
        text = text.replace(key, name)
    return " ".join(text.split())


def read_g722(path: Path) -> NDArray[np.int16]:
    """Return the samples of a recording, mono at 16 kHz; ffmpeg reads it."""
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path)]
    command += ["-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
    pcm = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    return np.frombuffer(pcm, np.int16)
