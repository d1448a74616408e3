"""Batched silero-vad with slot-indexed state: the probability of speech of every 32 ms of audio.

The network is silero-vad 6.2.3 at 16 kHz (MIT, `weights/`), written as plain matrix products so that it
runs the same on CPU and CUDA, in float32, without host synchronisation and with shapes fixed by (B, N):
a step of it can be captured in a CUDA graph. Audio arrives in chunks that are no multiple of the window
of 512 samples; what is left of a window waits in the slot's state.

Calls that the engine makes, all from its own thread::

    vad = SileroVad(num_slots=capacity + 1, device=device)        # one spare slot for padding rows
    vad.reset(slot)                                               # when a stream takes the slot
    probs_BW, num_windows_B = vad.run(samples_BN, num_samples_B, slots_B)
    vector = vad.export_slot(slot); vad.import_slot(slot, vector) # snapshots

Rows of `run` may have fewer samples than N (`num_samples_B`); a padding row has 0 and the spare slot.
A stream that has had S samples before the step and E after it gets windows S // 512 .. E // 512 - 1, so
the host knows the count without reading `num_windows_B` back.

Shape legend: B rows of the step, N samples of the widest row, W = (N + 511) // 512 windows,
R = B * W, S slots, H = 128 hidden units, T = 4 spectrum frames of a window.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpu_worker.turn.outcome import WINDOW_SAMPLES

SAMPLE_RATE: Final = 16_000
CONTEXT_SAMPLES: Final = 64
HIDDEN: Final = 128
_TAIL_SAMPLES: Final = CONTEXT_SAMPLES + WINDOW_SAMPLES - 1
_INPUT_SAMPLES: Final = CONTEXT_SAMPLES + WINDOW_SAMPLES
_FFT_SAMPLES: Final = 256
_HOP_SAMPLES: Final = 128
_BINS: Final = _FFT_SAMPLES // 2 + 1
_REFLECT_SAMPLES: Final = 64
# What a step of so many rows works on stays in a core's cache: a fifth faster than all rows at once.
_CPU_TILE_ROWS: Final = 64
# With fewer rows BLAS takes other kernels, which sum in another order.
_CPU_MIN_ROWS: Final = 4

WEIGHTS_PATH: Final = Path(__file__).parent / "weights" / "silero_vad_16k.safetensors"


class SileroVad:
    """silero-vad over many streams at once, each in a slot of its own.

    Args:
        num_slots: rows of state; the caller keeps one of them spare for padding rows.
        device: where weights and state live.
        weights_path: safetensors file with silero's own names.

    Source: silero-vad 6.2.3, `silero_vad/tinygrad_model.py` and `utils_vad.py` (snakers4/silero-vad).
    """

    def __init__(
        self,
        num_slots: int,
        device: torch.device | str = "cpu",
        weights_path: Path = WEIGHTS_PATH,
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self.device = torch.device(device)
        weights = load_file(weights_path)

        def on_device(tensor: Tensor) -> Tensor:
            return tensor.to(device=self.device, dtype=torch.float32).contiguous()

        # Every matrix stands as [inputs, outputs], taps of a convolution as rows in time order.
        self._spectrum = on_device(weights["stft_conv.weight"][:, 0, :].t())
        self._conv1 = on_device(_taps_first(weights["conv1.weight"]))
        self._conv1_bias = on_device(weights["conv1.bias"])
        self._conv2 = on_device(_taps_first(weights["conv2.weight"]))
        self._conv2_bias = on_device(weights["conv2.bias"])
        # The third convolution makes one frame of two: its first tap always meets the zero padding,
        # and the fourth sees one frame, so that only its middle tap meets anything.
        self._conv3 = on_device(_taps_first(weights["conv3.weight"])[64:])
        self._conv3_bias = on_device(weights["conv3.bias"])
        self._conv4 = on_device(weights["conv4.weight"][:, :, 1].t())
        self._conv4_bias = on_device(weights["conv4.bias"])
        self._lstm_input = on_device(weights["lstm_cell.weight_ih"].t())
        self._lstm_hidden = on_device(weights["lstm_cell.weight_hh"].t())
        self._lstm_bias = on_device(weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"])
        self._output = on_device(weights["final_conv.weight"][0, :, 0])
        self._output_bias = on_device(weights["final_conv.bias"])

        self._hann = self._spectrum[:, 0].contiguous()  # the window itself: at frequency 0 the cosine is 1

        self._tail_ST = torch.zeros(num_slots, _TAIL_SAMPLES, device=self.device)
        self._rest_S = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self._hidden_SH = torch.zeros(num_slots, HIDDEN, device=self.device)
        self._cell_SH = torch.zeros(num_slots, HIDDEN, device=self.device)
        self._tail_index = torch.arange(_TAIL_SAMPLES, device=self.device)
        # Position of every sample of a window's input, its right edge mirrored as silero pads it.
        mirrored = torch.arange(_INPUT_SAMPLES - 2, _INPUT_SAMPLES - 2 - _REFLECT_SAMPLES, -1)
        self._input_index = torch.cat([torch.arange(_INPUT_SAMPLES), mirrored]).to(self.device)

    @torch.no_grad()
    def run(self, samples_BN: Tensor, num_samples_B: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """Take each row's next samples and return the windows which they complete.

        Args:
            samples_BN: float32 audio at 16 kHz in [-1, 1]; what lies past a row's count is not read.
            num_samples_B: integer count of valid samples of each row, 0..N.
            slots_B: integer slot of each row; no slot twice, but for the spare one.

        Returns:
            probs_BW: float32 probability of speech; zero past a row's count of windows.
            num_windows_B: int64 count of valid windows of each row.
        """
        slots_B = slots_B.to(torch.int64)
        num_samples_B = num_samples_B.to(torch.int64)
        if self.device.type != "cpu":
            return self._run_tile(samples_BN, num_samples_B, slots_B)
        tiles = [
            self._run_cpu_tile(*tile)
            for tile in zip(
                torch.split(samples_BN, _CPU_TILE_ROWS),
                torch.split(num_samples_B, _CPU_TILE_ROWS),
                torch.split(slots_B, _CPU_TILE_ROWS),
                strict=True,
            )
        ]
        return torch.cat([probs for probs, _ in tiles]), torch.cat([count for _, count in tiles])

    def _run_cpu_tile(
        self, samples_BN: Tensor, num_samples_B: Tensor, slots_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a tile whose rows come out the same to the last bit, whatever their number."""
        num_rows = len(slots_B)
        if num_rows >= _CPU_MIN_ROWS:
            return self._run_tile(samples_BN, num_samples_B, slots_B)
        # Rows again, so that what is written twice into a slot is the same.
        rows = torch.arange(_CPU_MIN_ROWS).remainder_(num_rows)
        probs_BW, num_windows_B = self._run_tile(samples_BN[rows], num_samples_B[rows], slots_B[rows])
        return probs_BW[:num_rows], num_windows_B[:num_rows]

    def _run_tile(self, samples_BN: Tensor, num_samples_B: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_columns = samples_BN.shape
        max_windows = (num_columns + WINDOW_SAMPLES - 1) // WINDOW_SAMPLES
        rest_B = self._rest_S.index_select(0, slots_B)
        num_windows_B = (rest_B + num_samples_B) // WINDOW_SAMPLES

        history = torch.cat([self._tail_ST.index_select(0, slots_B), samples_BN], dim=1)
        features_BWF = self._features(history, rest_B, num_windows_B, max_windows)

        # [W, B, 4H]: the input's share of the gates is one product for all windows.
        gates_WBG = torch.addmm(
            self._lstm_bias,
            features_BWF.transpose(0, 1).reshape(-1, HIDDEN),
            self._lstm_input,
        ).view(max_windows, num_rows, 4 * HIDDEN)
        hidden_BH = self._hidden_SH.index_select(0, slots_B)
        cell_BH = self._cell_SH.index_select(0, slots_B)
        hidden_of_window: list[Tensor] = []
        for window in range(max_windows):
            gates = torch.addmm(gates_WBG[window], hidden_BH, self._lstm_hidden)
            into, forget, candidate, out = gates.chunk(4, dim=1)
            next_cell = forget.sigmoid() * cell_BH + into.sigmoid() * candidate.tanh()
            next_hidden = out.sigmoid() * next_cell.tanh()
            complete = (num_windows_B > window).unsqueeze(1)
            cell_BH = torch.where(complete, next_cell, cell_BH)
            hidden_BH = torch.where(complete, next_hidden, hidden_BH)
            hidden_of_window.append(next_hidden)
        hidden_BWH = torch.stack(hidden_of_window, dim=1).relu()
        # In float64 the last bit of the sigmoid does not depend on where vector instructions end.
        logits_BW = ((hidden_BWH * self._output).sum(2) + self._output_bias).double()
        window_index = torch.arange(max_windows, device=self.device)
        probs_BW = logits_BW.sigmoid().float() * (window_index < num_windows_B.unsqueeze(1))

        tail_index_BT = num_samples_B.unsqueeze(1) + self._tail_index
        self._tail_ST.index_copy_(0, slots_B, history.gather(1, tail_index_BT))
        self._rest_S.index_copy_(0, slots_B, rest_B + num_samples_B - num_windows_B * WINDOW_SAMPLES)
        self._hidden_SH.index_copy_(0, slots_B, hidden_BH)
        self._cell_SH.index_copy_(0, slots_B, cell_BH)
        return probs_BW, num_windows_B

    def _features(self, history: Tensor, rest_B: Tensor, num_windows_B: Tensor, max_windows: int) -> Tensor:
        """[B, 575 + N] audio to the encoder's output [B, W, H], windows past a row's count undefined."""
        num_rows, num_columns = history.shape
        start_B = _TAIL_SAMPLES - CONTEXT_SAMPLES - rest_B
        window_B = torch.arange(max_windows, device=self.device) * WINDOW_SAMPLES
        start_BW = start_B.unsqueeze(1) + window_B
        if self.device.type != "cpu":
            index = start_BW.unsqueeze(2) + self._input_index
            # Windows that are not complete would read past the end; what they read does not count.
            index = index.clamp_(max=num_columns - 1).view(num_rows, -1)
            input_RN = history.gather(1, index).view(num_rows * max_windows, -1)
            return self._encode(input_RN).view(num_rows, max_windows, HIDDEN)
        # On CPU only the windows that are complete are worked on: shapes may depend on the audio there.
        row_R, window_R = torch.nonzero(num_windows_B.unsqueeze(1) * WINDOW_SAMPLES > window_B, as_tuple=True)
        features_BWF = torch.zeros(num_rows, max_windows, HIDDEN)
        if len(row_R):
            index_RN = start_BW[row_R, window_R].unsqueeze(1) + self._input_index
            input_RN = history[row_R.unsqueeze(1), index_RN]
            repeated = torch.arange(max(_CPU_MIN_ROWS, len(row_R))).remainder_(len(row_R))
            features_BWF[row_R, window_R] = self._encode(input_RN[repeated])[: len(row_R)]
        return features_BWF

    def _encode(self, input_RN: Tensor) -> Tensor:
        """[R, 640] windows with context and mirrored edge to the encoder's output [R, H]."""
        frames_RTN = input_RN.unfold(1, _FFT_SAMPLES, _HOP_SAMPLES)
        num_inputs, num_frames, _ = frames_RTN.shape
        padded = torch.zeros(num_inputs, num_frames + 2, _BINS, device=self.device)
        padded[:, 1:-1] = self._magnitude(frames_RTN)
        first = torch.addmm(self._conv1_bias, _three_taps(padded, 1).view(-1, 3 * _BINS), self._conv1).relu_()
        padded = torch.zeros(num_inputs, num_frames + 1, HIDDEN, device=self.device)
        padded[:, 1:] = first.view(num_inputs, num_frames, HIDDEN)
        second = torch.addmm(
            self._conv2_bias, _three_taps(padded, 2).view(-1, 3 * HIDDEN), self._conv2
        ).relu_()
        third = torch.addmm(self._conv3_bias, second.view(num_inputs, -1), self._conv3).relu_()
        return torch.addmm(self._conv4_bias, third, self._conv4).relu_()

    def _magnitude(self, frames_RTN: Tensor) -> Tensor:
        """[R, T, 256] frames to their spectra [R, T, 129].

        The network's first layer holds the Fourier transform of a Hann window: on a GPU that product is
        as good as any, on a CPU the fast transform takes two thirds of its time.
        """
        if self.device.type == "cpu":
            spectrum: Tensor = torch.fft.rfft(frames_RTN * self._hann, dim=2)
            return (spectrum.real.square() + spectrum.imag.square()).sqrt_()
        spectrum = frames_RTN.reshape(-1, _FFT_SAMPLES) @ self._spectrum
        magnitude = (spectrum[:, :_BINS].square() + spectrum[:, _BINS:].square()).sqrt()
        return magnitude.view(*frames_RTN.shape[:2], _BINS)

    def reset(self, slot: int) -> None:
        """Forgets all that the slot holds, so that a new stream can take it."""
        self._tail_ST[slot].zero_()
        self._rest_S[slot].zero_()
        self._hidden_SH[slot].zero_()
        self._cell_SH[slot].zero_()

    def export_slot(self, slot: int) -> Tensor:
        """Return the slot's whole state as one float32 vector, for a snapshot."""
        rest = self._rest_S[slot].to(torch.float32).reshape(1)
        parts = [rest, self._tail_ST[slot], self._hidden_SH[slot], self._cell_SH[slot]]
        return torch.cat(parts)

    def import_slot(self, slot: int, vector: Tensor) -> None:
        """Set the slot to what `export_slot` returned; going on from there is exact.

        Raises:
            ValueError: the vector has another length, or a count that cannot be: of another version.
        """
        if vector.shape != (EXPORT_FLOATS,):
            raise ValueError(f"a slot's state has {EXPORT_FLOATS} values, got {tuple(vector.shape)}")
        rest, tail, hidden, cell = torch.split(
            vector.to(self.device, torch.float32), [1, _TAIL_SAMPLES, HIDDEN, HIDDEN]
        )
        if not 0 <= float(vector[0]) < WINDOW_SAMPLES:
            raise ValueError(f"a slot's state counts {float(vector[0])} samples of a window")
        self._rest_S[slot] = rest[0].to(torch.int64)
        self._tail_ST[slot] = tail
        self._hidden_SH[slot] = hidden
        self._cell_SH[slot] = cell


EXPORT_FLOATS: Final = 1 + _TAIL_SAMPLES + 2 * HIDDEN


def _taps_first(weight: Tensor) -> Tensor:
    """[out, in, taps] of a convolution to [taps * in, out]."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0])


def _three_taps(padded: Tensor, stride: int) -> Tensor:
    """[R, T, C] to [R, outputs, 3 * C]: what each output of a convolution with three taps sees."""
    num_outputs = (padded.shape[1] - 3) // stride + 1
    taps = [padded[:, tap : tap + stride * (num_outputs - 1) + 1 : stride] for tap in range(3)]
    return torch.cat(taps, dim=2)
