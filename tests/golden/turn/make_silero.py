"""Takes silero-vad's weights out of its wheel and records what its own model says of real recordings.

    pip install --no-deps silero-vad==6.2.3
    python tests/golden/turn/make_silero.py RECORDING.wav ...

writes gpu_worker/turn/weights/silero_vad_16k.safetensors, and beside this file silero.safetensors, which
holds each recording's first samples (int16) and the package's probability of each of their windows.
The tests read the latter and need no package.
"""

import sys
import wave
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
WEIGHTS = HERE.parents[2] / "gpu_worker" / "turn" / "weights" / "silero_vad_16k.safetensors"
SECONDS = 5
WINDOW_SAMPLES = 512

NAMES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{
        f"encoder.{layer}.reparam_conv.{part}": f"conv{layer + 1}.{part}"
        for layer in range(4)
        for part in ("weight", "bias")
    },
    **{
        f"decoder.rnn.{part}": f"lstm_cell.{part}"
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    "decoder.decoder.2.weight": "final_conv.weight",
    "decoder.decoder.2.bias": "final_conv.bias",
}


def main(recordings: list[str]) -> None:
    model = torch.jit.load(str(files("silero_vad") / "data" / "silero_vad.jit"), map_location="cpu")  # type: ignore[no-untyped-call]
    network = model._model
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    save_file(
        {NAMES[name]: tensor.detach().float().contiguous() for name, tensor in tensors.items()},
        WEIGHTS,
        metadata={"source": f"silero-vad {version('silero-vad')}, silero_vad/data/silero_vad.jit"},
    )

    golden: dict[str, torch.Tensor] = {}
    for path in map(Path, recordings):
        with wave.open(str(path)) as recording:
            assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (
                16000,
                1,
                2,
            )
            pcm = bytearray(recording.readframes(SECONDS * 16_000))
        samples = torch.frombuffer(pcm, dtype=torch.int16)
        samples = samples[: len(samples) // WINDOW_SAMPLES * WINDOW_SAMPLES].clone()
        model.reset_states()
        with torch.no_grad():
            probs = [
                model(window[None].float() / 32768, 16_000).item()
                for window in samples.view(-1, WINDOW_SAMPLES)
            ]
        golden[f"{path.stem}.samples"] = samples
        golden[f"{path.stem}.probs"] = torch.tensor(probs)
    save_file(golden, HERE / "silero.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
