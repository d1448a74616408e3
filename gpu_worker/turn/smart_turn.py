"""smart-turn v3.2: a network that predicts whether the speech so far is a finished turn.

The network (BSD-2, `weights/`) takes Whisper's log-mel spectrogram of the last 8 s and returns a probability.
It costs tens of milliseconds on one core and gains nothing from batching, so that
`gpu_worker.turn.smart_turn_pool` runs it in threads of its own, at speech-to-silence edges only.
Needs onnxruntime (the `smart-turn` extra).

Source: pipecat-ai 1.14.0, `local_smart_turn_v3.py` (the network's input); Radford et al. 2022,
"Robust Speech Recognition via Large-Scale Weak Supervision", and OpenAI's `whisper/audio.py` (the features).
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SAMPLE_RATE: Final = 16_000
INPUT_SAMPLES: Final = 8 * SAMPLE_RATE
NUM_MELS: Final = 80
NUM_FRAMES: Final = 800
_FFT_SAMPLES: Final = 400
_HOP_SAMPLES: Final = 160

MODEL_PATH: Final = Path(__file__).parent / "weights" / "smart-turn-v3.2-cpu.onnx"


class SmartTurnUnavailableError(Exception):
    """onnxruntime is not installed."""


class SmartTurn:
    """The network in one onnxruntime session; `probability` may be called from several threads at once.

    Args:
        model_path: the ONNX file.

    Raises:
        SmartTurnUnavailableError: onnxruntime is not installed.
    """

    def __init__(self, model_path: Path = MODEL_PATH) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise SmartTurnUnavailableError(
                "smart-turn needs onnxruntime: pip install 'parakeet-server[smart-turn]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # The pool has all the threads that it may use; a session must not have its own.
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            str(model_path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        # The first call allocates memory; no stream should pay for it.
        self.probability(np.zeros(INPUT_SAMPLES, np.int16))

    def probability(self, audio: NDArray[np.int16]) -> float:
        """Return the probability that the turn is complete.

        Args:
            audio: the stream's last audio at 16 kHz; only the last 8 s count.
        """
        features = log_mel(audio.astype(np.float32) / 32_768.0)
        (output,) = self._session.run(None, {"input_features": features[None]})
        return float(np.asarray(output).reshape(-1)[0])


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Whisper's log-mel spectrogram of the last 8 s; shorter audio has silence in front.

    Args:
        samples: audio at 16 kHz, full scale 1.0.

    Returns:
        [80, 800] float32.
    """
    padded = np.zeros(INPUT_SAMPLES, np.float32)
    tail = samples[-INPUT_SAMPLES:]
    if len(tail):
        padded[-len(tail) :] = tail
    normal = (padded - padded.mean()) / np.sqrt(padded.var() + 1e-7)
    mirrored = np.pad(normal.astype(np.float64), _FFT_SAMPLES // 2, mode="reflect")
    frames = sliding_window_view(mirrored, _FFT_SAMPLES)[: NUM_FRAMES * _HOP_SAMPLES : _HOP_SAMPLES]
    spectrum = np.fft.rfft(frames * _hann(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    level = np.log10(np.maximum(_mel_filters() @ power.T, 1e-10))
    level = np.maximum(level, level.max() - 8.0)
    features: NDArray[np.float32] = ((level + 4.0) / 4.0).astype(np.float32)
    return features


@cache
def _hann() -> NDArray[np.float64]:
    """Return the periodic Hann window: the symmetric window of one more sample, without its last."""
    return np.hanning(_FFT_SAMPLES + 1)[:-1]


@cache
def _mel_filters() -> NDArray[np.float64]:
    """Return [80, 201] triangles of equal area, spaced evenly on Slaney's mel scale from 0 to 8 kHz.

    The scale is linear to 1 kHz (3 mels for 200 Hz), then logarithmic (27 mels for a factor of 6.4).
    Source: Slaney 1998, "Auditory Toolbox".
    """
    knee_hz, knee_mel, log_step = 1_000.0, 15.0, np.log(6.4) / 27.0
    top_mel = knee_mel + np.log(SAMPLE_RATE / 2 / knee_hz) / log_step
    mels = np.linspace(0.0, top_mel, NUM_MELS + 2)
    corners_hz = np.where(mels < knee_mel, mels * 200.0 / 3.0, knee_hz * np.exp((mels - knee_mel) * log_step))
    bins_hz = np.arange(_FFT_SAMPLES // 2 + 1) * SAMPLE_RATE / _FFT_SAMPLES
    low, centre, high = (corners_hz[k : k + NUM_MELS, None] for k in range(3))
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters: NDArray[np.float64] = triangles * 2.0 / (high - low)
    return filters
