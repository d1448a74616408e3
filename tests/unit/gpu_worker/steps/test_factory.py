"""From settings to an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import SettingsError
from common.phrases import Phrase, phrases_digest
from common.process.machine import Machine
from common.settings import WorkerSettings, parse
from gpu_worker.backend import make_backend
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.model.errors import ModelConfigError
from gpu_worker.steps.eager import EagerSteps
from gpu_worker.steps.factory import (
    engine_config,
    make_engine,
    make_model_engine,
    pick_device,
    pick_dtype,
)
from gpu_worker.steps.null import NullEngine
from tests.oracle.models import tiny


def worker_settings(*flags: str) -> WorkerSettings:
    settings = parse("worker", ["--model-size", "tiny", "--worker-max-streams", "3", *flags], {})
    assert isinstance(settings, WorkerSettings)
    return settings


def test_tiny_on_cpu() -> None:
    built = make_engine(worker_settings("--device", "cpu", "--num-threads", "1"))
    assert isinstance(built.engine.steps, EagerSteps)
    assert (built.device, built.dtype, built.chunk_ms) == ("cpu", "float32", 160)
    assert built.engine.capacity == 3
    assert built.model.endswith("tiny")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("num_cores", "threads"), [(2, 1), (4, 3), (64, 8)])
def test_a_worker_takes_all_cores_of_its_container_but_one(
    num_cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(Machine, "here", lambda: Machine(num_cores, 1 << 30))
    try:
        torch.set_num_threads(8)
        make_engine(worker_settings("--device", "cpu"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_null_engine_loads_no_model() -> None:
    backend = make_backend(worker_settings("--backend", "null", "--chunk-ms", "80"))
    assert isinstance(backend.engine, NullEngine)
    assert backend.description["chunk_ms"] == "80"


def test_flags_become_sizes() -> None:
    config = engine_config(
        worker_settings(
            "--chunk-ms", "560", "--encode-batch-size", "5", "--decode-batch-size", "7", "--eou-reset", "off",
            "--turn-detection", "off",
        ),
        tiny(),
    )  # fmt: skip
    assert config.context == (70, 6)
    assert (config.batch_sizes.pre_encode, config.batch_sizes.encode, config.batch_sizes.decode) == (16, 5, 7)
    assert (config.reset_at_end, config.turn_detection) == (False, False)
    assert config.page_frames == 0, "on CPU a stream has one page as long as its window"


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(SettingsError, match="needs CUDA"):
        engine_config(worker_settings("--paged-kv-cache", "on"), tiny())
    with pytest.raises(ModelConfigError, match="80, 160, 560, 1120"):
        engine_config(worker_settings("--chunk-ms", "320"), tiny())
    # 70 frames of context and 8 of a step; with fewer pages every stream would end in some seconds.
    pages = EngineConfig(num_slots=3, page_frames=16, num_pages=4)
    with pytest.raises(SettingsError, match="--paged-kv-max-pages got 4, but takes at least 5"):
        make_model_engine(tiny(), pages)
    assert make_model_engine(tiny(), replace(pages, num_pages=5)).steps.shape.pages.ring_pages == 5
    with pytest.raises(SettingsError, match="CUDA devices are there"):
        pick_device(f"cuda:{torch.cuda.device_count()}")


def test_automatic_types() -> None:
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert pick_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


CPU = ("--device", "cpu", "--num-threads", "1", "--measure-capacity-s", "0")


def test_phrases_of_a_file_are_every_streams_and_have_a_name_in_the_cluster(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("Zyrtec\t2\nJane Doe\n", encoding="utf-8")
    backend = make_backend(worker_settings(*CPU, "--phrases-file", str(path)))
    assert backend.served.phrases == phrases_digest((Phrase("Zyrtec", 2.0), Phrase("Jane Doe")))
    assert isinstance(backend.engine, SpeechEngine)
    assert backend.engine.book.num_lists == 1
    assert make_backend(worker_settings(*CPU)).served.phrases == "none"


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("hello\nМосква\n", (), 'phrases.txt: .*cannot write "Москва"'),
        ("hello\n" * 20_001, (), "20001 phrases"),
        ("hello\n", ("--phrase-memory-mb", "0"), "no phrase boosting"),
        ("hello\n", ("--backend", "null"), "--backend null boosts no phrases"),
    ],
)
def test_a_file_that_cannot_be_is_said_at_start(
    tmp_path: Path, text: str, flags: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=says):
        make_backend(worker_settings(*CPU, "--phrases-file", str(path), *flags))
