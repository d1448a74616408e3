"""Prediction network: embedding and LSTM; a call takes one token for each of many rows.

The token's share of the first layer's gates is a table, computed once.

Shape legend: B rows, P layers, U width, V vocabulary with blank.

Source: NeMo `RNNTDecoder` (blank_as_pad: the blank stands for the start and embeds to zeros).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_worker.model.config import ModelConfig


class Predictor:
    """LSTM over emitted tokens; the caller keeps the state."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        prefix = "decoder.prediction.dec_rnn.lstm"
        self.num_layers = config.pred_layers
        self.width = config.pred_hidden
        self._blank = config.blank_id
        embedding = weights["decoder.prediction.embed.weight"].clone()
        embedding[self._blank] = 0.0
        self.dtype = embedding.dtype
        self.device = embedding.device

        def bias(layer: int) -> Tensor:
            return weights[f"{prefix}.bias_ih_l{layer}"] + weights[f"{prefix}.bias_hh_l{layer}"]

        self._token_gates_V4U = torch.addmm(bias(0), embedding, weights[f"{prefix}.weight_ih_l0"].t())
        self._hidden = [weights[f"{prefix}.weight_hh_l{layer}"].t() for layer in range(self.num_layers)]
        self._input = [weights[f"{prefix}.weight_ih_l{layer}"].t() for layer in range(1, self.num_layers)]
        self._bias = [bias(layer) for layer in range(1, self.num_layers)]

    def run(self, token_B: Tensor, hidden_PBU: Tensor, cell_PBU: Tensor) -> tuple[Tensor, Tensor]:
        """Run the LSTM on one token of every row.

        Returns the next hidden_PBU, whose last layer is the output, and the next cell_PBU.
        """
        hiddens: list[Tensor] = []
        cells: list[Tensor] = []
        gates = self._token_gates_V4U.index_select(0, token_B)
        for layer in range(self.num_layers):
            if layer > 0:
                gates = torch.addmm(self._bias[layer - 1], hiddens[-1], self._input[layer - 1])
            gates = torch.addmm(gates, hidden_PBU[layer], self._hidden[layer])
            into, forget, candidate, out = gates.chunk(4, dim=1)
            cell = torch.addcmul(forget.sigmoid() * cell_PBU[layer], into.sigmoid(), candidate.tanh())
            cells.append(cell)
            hiddens.append(out.sigmoid() * cell.tanh())
        return torch.stack(hiddens), torch.stack(cells)

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the hidden and cell state, [P, 1, U] each, after the start symbol."""
        zeros = torch.zeros(self.num_layers, 1, self.width, dtype=self.dtype, device=self.device)
        token = torch.full((1,), self._blank, dtype=torch.int64, device=self.device)
        return self.run(token, zeros, zeros)
