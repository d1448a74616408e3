"""Kokoro's readers of phonemes: an ALBERT for prosody, convolutions and an LSTM for sounds.

Shape legend: B rows, T phonemes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.speech.kokoro.layers import ChannelNorm, Span, both_ways, run_lstm

NUM_SYMBOLS = 178
_MAX_PHONEMES = 512


class _Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(NUM_SYMBOLS, width)
        self.position_embeddings = nn.Embedding(_MAX_PHONEMES, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        position = torch.arange(symbols_BT.shape[1], device=symbols_BT.device)
        x = self.word_embeddings(symbols_BT) + self.position_embeddings(position)[None]
        out: Tensor = self.LayerNorm(x + self.token_type_embeddings.weight[0])
        return out


class _SelfAttention(nn.Module):
    _HEADS = 12

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.dense = nn.Linear(width, width), nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width)

    def forward(self, x_BTC: Tensor, valid_B11T: Tensor) -> Tensor:
        num_rows, size, _ = x_BTC.shape
        q, k, v = (
            part(x_BTC).view(num_rows, size, self._HEADS, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_B11T)
        out: Tensor = self.LayerNorm(x_BTC + self.dense(attended.transpose(1, 2).reshape(x_BTC.shape)))
        return out


class _AlbertLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(width)
        self.ffn, self.ffn_output = nn.Linear(width, 2048), nn.Linear(2048, width)
        self.full_layer_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.attention(x, valid)
        inner = self.ffn_output(F.gelu(self.ffn(x), approximate="tanh"))
        out: Tensor = self.full_layer_layer_norm(x + inner)
        return out


class _AlbertGroup(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.albert_layers = nn.ModuleList([_AlbertLayer(width)])


class _AlbertEncoder(nn.Module):
    """One layer, run twelve times."""

    def __init__(self, narrow: int, width: int) -> None:
        super().__init__()
        self.embedding_hidden_mapping_in = nn.Linear(narrow, width)
        self.albert_layer_groups = nn.ModuleList([_AlbertGroup(width)])


class Albert(nn.Module):
    """Phonemes to context vectors, [B, T, 768] (Lan et al. 2020, as in PL-BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _Embeddings(128)
        self.encoder = _AlbertEncoder(128, 768)

    def forward(self, symbols_BT: Tensor, valid_BT: Tensor) -> Tensor:
        x: Tensor = self.encoder.embedding_hidden_mapping_in(self.embeddings(symbols_BT))
        layer = self.get_submodule("encoder.albert_layer_groups.0.albert_layers.0")
        for _ in range(12):
            x = layer(x, valid_BT[:, None, None])
        return x


class SoundEncoder(nn.Module):
    """Phonemes to what the vocoder is to say, [B, 512, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_SYMBOLS, 512)
        self.cnn = nn.ModuleList(
            nn.Sequential(nn.Conv1d(512, 512, 5, padding=2), ChannelNorm(512), nn.LeakyReLU(0.2))
            for _ in range(3)
        )
        self.lstm = both_ways(512, 256)

    def forward(self, symbols_BT: Tensor, span: Span) -> Tensor:
        x = span.cut(self.embedding(symbols_BT).transpose(1, 2))
        for block in self.cnn:
            x = span.cut(block(x))
        return span.cut(run_lstm(self.lstm, x.transpose(1, 2), span.lengths_B).transpose(1, 2))
