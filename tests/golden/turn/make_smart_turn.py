"""Records what pipecat-ai's own smart-turn code says of real recordings.

    pip install --no-deps pipecat-ai==1.14.0        # its feature code needs numpy only
    python tests/golden/turn/make_smart_turn.py RECORDING.wav ...

writes smart_turn.safetensors beside this file: of each recording's beginning, the samples (int16), every
tenth frame of the log-mel spectrogram, and the network's probability. The tests need no package.
"""

import importlib.util
import sys
import wave
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SECONDS = (1, 3, 9)


def main(recordings: list[str]) -> None:
    folder = Path(str(distribution("pipecat-ai").locate_file("pipecat/audio/turn/smart_turn")))
    features = _load(folder / "_whisper_features.py")
    session = onnxruntime.InferenceSession(str(folder / "data" / "smart-turn-v3.2-cpu.onnx"))
    golden: dict[str, NDArray[np.int16] | NDArray[np.float32]] = {}
    for path, seconds in zip(map(Path, recordings), SECONDS, strict=True):
        with wave.open(str(path)) as recording:
            pcm = np.frombuffer(recording.readframes(seconds * 16_000), np.int16)
        samples = (pcm.astype(np.float32) / 32_768)[-128_000:]
        padded = np.pad(samples, (128_000 - len(samples), 0))
        log_mel = features.compute_whisper_log_mel_features(padded, do_normalize=True)
        (output,) = session.run(None, {"input_features": log_mel[None]})
        golden[f"{path.stem}.samples"] = pcm.copy()
        golden[f"{path.stem}.log_mel"] = np.ascontiguousarray(log_mel[:, ::10])
        golden[f"{path.stem}.probability"] = output[0].astype(np.float32)
    save_file(golden, HERE / "smart_turn.safetensors")


def _load(path: Path) -> ModuleType:
    """The module alone: importing the package would need all that it depends on."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1:])
