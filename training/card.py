"""The model card: facts of the weights, and their word error rates from runs of the shipped file.

`benchmarks.wer` writes the digest of the measured weights to its results; results of other weights are
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpu_worker.model.loaded_model import LoadedModel, read_folder

_COLUMNS: Final = {"asterisk": "Asterisk prompts", "librivox": "LibriVox", "recordings": "bundled recordings"}


class CardError(Exception):
    """Results that do not belong to the weights."""


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over a model folder's weights files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def render(folder: Path, title: str, notes: str, results: Path) -> str:
    """Return the card of a model folder.

    Args:
        folder: the exported model.
        title: the card's first line.
        notes: text on data, licences and training, in Markdown.
        results: JSON file of `benchmarks.wer`.

    Raises CardError for results of other weights, OSError and ValueError for files that cannot be read.
    """
    measured: Mapping[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    if measured.get("weights_sha256") != weights_digest(folder):
        raise CardError(f"{results} was measured with other weights than those in {folder}.")
    lines = [f"# {title}", "", *_facts(folder, read_folder(folder)), "", "## Word error rate", ""]
    lines += [f"In percent, through the service on the CPU, {measured['date']}: `{measured['command']}`.", ""]
    lines += [*_table(measured["scores"]), "", notes.strip()]
    return "\n".join(lines) + "\n"


def _facts(folder: Path, model: LoadedModel) -> list[str]:
    config = model.config
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    contexts = ", ".join(str(list(context)) for context in config.att_contexts)
    chunks = ", ".join(str(ms) for ms in config.chunk_sizes_ms)
    return [
        "| | |",
        "|---|---|",
        f"| class | NeMo `{config.model_class}` |",
        f"| size | {model.num_parameters:,} parameters, {size / 1e6:.1f} MB in float16 |",
        f"| encoder | {config.num_layers} layers, d {config.d_model}, {config.num_heads} heads |",
        f"| contexts | {contexts}: chunks of {chunks} ms |",
        f"| prediction | LSTM {config.pred_layers} x {config.pred_hidden} |",
        f"| joint | {config.joint_hidden} |",
        f"| vocabulary | {config.vocab_size} pieces with `<EOU>`; blank {config.blank_id} |",
    ]


def _table(scores: list[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys((one["source"], one["clips_a_stream"]) for one in scores))
    names = []
    for source, count in columns:
        together = f", {count} in one stream" if count > 1 else ""
        words = next(
            one["words"] for one in scores if (one["source"], one["clips_a_stream"]) == (source, count)
        )
        names.append(f"{_COLUMNS.get(source, source)}{together} ({words} words)")
    rows = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(columns)]
    cells = {
        (one["system"], one["source"], one["clips_a_stream"]): f"{100 * one['errors'] / one['words']:.1f}"
        for one in scores
    }
    for system in dict.fromkeys(one["system"] for one in scores):
        row = " | ".join(cells.get((system, *column), "") for column in columns)
        rows += [f"| {system} | {row} |"]
    return rows
