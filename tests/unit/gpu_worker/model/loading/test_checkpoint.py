"""Folders and `.nemo` archives: what loads, and what each damage is called."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.model.errors import CheckpointError, ModelConfigError, ModelError, TokenizerError
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import BUNDLED, exports_folder, load_model, read_checkpoint
from gpu_worker.model.loading.hub import Hub

TINY = BUNDLED / "tiny"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_file(TINY / "tiny.safetensors")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def config_text() -> str:
    text = (TINY / "model_config.yaml").read_text(encoding="utf-8")
    return text.replace("model_path: tokenizer.model", "model_path: nemo:abc_tokenizer.model")


def make_nemo(
    path: Path,
    weights: bytes | None,
    *,
    config: str | None = None,
    prefix: str = "./",
    mode: str = "w",
    tokenizer: str = "abc_tokenizer.model",
) -> Path:
    options = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        add(tar, f"{prefix}model_config.yaml", (config or config_text()).encode())
        add(tar, f"{prefix}{tokenizer}", (TINY / "tokenizer.model").read_bytes())
        add(tar, f"{prefix}vocab.txt", b"unused")
        if weights is not None:
            add(tar, f"{prefix}model_weights.ckpt", weights)
    return path


def copy_folder(target: Path) -> Path:
    shutil.copytree(TINY, target)
    return target


def same(one: LoadedModel, other: LoadedModel) -> bool:
    return one.config == other.config and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items()
    )


def test_the_bundled_model_loads_in_float32() -> None:
    model = read_checkpoint(TINY)
    assert model.num_parameters == 12_029_890
    assert {tensor.dtype for tensor in model.weights.values()} == {torch.float32}


@pytest.mark.parametrize(("prefix", "mode"), [("./", "w"), ("", "w"), ("./", "w:gz")])
def test_a_nemo_archive_equals_its_folder(tmp_path: Path, weights: Weights, prefix: str, mode: str) -> None:
    path = make_nemo(tmp_path / "m.nemo", saved(weights), prefix=prefix, mode=mode)
    model = read_checkpoint(path)
    folder = read_checkpoint(TINY)
    assert model.config.default_context == folder.config.default_context
    assert same(model, folder)
    assert model.tokenizer.decode([3, 5]) == folder.tokenizer.decode([3, 5])


def test_bfloat16_leaves_the_mel_front_end_alone() -> None:
    model = read_checkpoint(TINY, dtype=torch.bfloat16)
    for name, tensor in model.weights.items():
        wanted = torch.float32 if name.startswith("preprocessor.") else torch.bfloat16
        assert tensor.dtype == wanted, name


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.97, 0.9999])
def test_a_truncated_archive_says_so(tmp_path: Path, weights: Weights, kept: float) -> None:
    path = make_nemo(tmp_path / "m.nemo", saved(weights))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    os.truncate(path, int((last.offset_data + last.size) * kept))
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path)


def test_a_truncated_gzip_archive_says_so(tmp_path: Path, weights: Weights) -> None:
    path = make_nemo(tmp_path / "m.nemo", saved(weights), mode="w:gz")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path)


def test_a_damaged_gzip_archive_says_so(tmp_path: Path, weights: Weights) -> None:
    path = make_nemo(tmp_path / "m.nemo", saved(weights), mode="w:gz")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_truncated_safetensors_file_says_so(tmp_path: Path) -> None:
    folder = copy_folder(tmp_path / "m")
    os.truncate(folder / "tiny.safetensors", 1_000_000)
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(folder)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(b"no archive" * 1000)
    with pytest.raises(CheckpointError, match=r"not a whole \.nemo archive"):
        read_checkpoint(path)


def test_a_damaged_state_dict(tmp_path: Path, weights: Weights) -> None:
    data = bytearray(saved(weights))
    data[: len(data) // 3] = bytes(len(data) // 3)
    path = make_nemo(tmp_path / "m.nemo", bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


class Evil:
    """Pickles to a call that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_an_archive_is_not_run(tmp_path: Path, protocol: str) -> None:
    trap = tmp_path / "trap"
    state = {"encoder.weight": Evil(trap)}
    data = saved(state) if protocol == "torch" else pickle.dumps(state, protocol=2)
    path = make_nemo(tmp_path / "m.nemo", data)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_checkpoint(path)
    assert not trap.exists()


def test_members_that_lead_elsewhere_are_not_followed(tmp_path: Path, weights: Weights) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((TINY / "tokenizer.model").read_bytes())
    path = tmp_path / "m.nemo"
    with tarfile.open(path, "w") as tar:
        add(tar, "model_config.yaml", config_text().encode())
        link = tarfile.TarInfo("abc_tokenizer.model")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        add(tar, "../outside", b"x")
        add(tar, "model_weights.ckpt", saved(weights))
    with pytest.raises(CheckpointError, match=r"0 tokenizer\.model members"):
        read_checkpoint(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.nemo", "secret"]


def test_a_config_of_another_class_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    config = config_text().replace("rnnt_bpe_models.EncDecRNNTBPEModel", "aed_models.EncDecMultiTaskModel")
    path = make_nemo(tmp_path / "m.nemo", b"no weights", config=config)
    with pytest.raises(ModelConfigError, match=r"EncDecMultiTaskModel.*supported are"):
        read_checkpoint(path)


def test_an_archive_without_weights_lists_what_it_has(tmp_path: Path) -> None:
    path = make_nemo(tmp_path / "m.nemo", None)
    with pytest.raises(CheckpointError, match=r"no member model_weights\.ckpt; it has .*vocab\.txt"):
        read_checkpoint(path)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def instead(name: str, tensor: torch.Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: tensor}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("joint.pred.bias"), r"lacks 1 of the \d+ tensors.*joint\.pred\.bias"),
        (
            instead("joint.enc.weight", torch.zeros(256, 191)),
            r"joint\.enc\.weight has shape \[256, 191\], but its config calls for \[256, 192\]",
        ),
        (
            instead("encoder.layers.12.norm_out.weight", torch.zeros(192)),
            r"has 1 tensors that its config does not call for.*encoder\.layers\.12\.norm_out\.weight",
        ),
        (instead("joint.enc.bias", torch.zeros(256, dtype=torch.int32)), r"joint\.enc\.bias is torch\.int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, weights: Weights, change: Callable[[Weights], Weights], sentence: str
) -> None:
    folder = copy_folder(tmp_path / "m")
    save_file(change(weights), folder / "tiny.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["joint.enc.bias", "preprocessor.featurizer.fb"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, weights: Weights, name: str, number: float, dtype: torch.dtype
) -> None:
    folder = copy_folder(tmp_path / "m")
    damaged = weights[name].clone()
    damaged.view(-1)[-1] = number
    save_file({**weights, name: damaged}, folder / "tiny.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} has numbers that are infinite or no numbers"):
        read_checkpoint(folder, dtype=dtype)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = copy_folder(tmp_path / "m")
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises((TokenizerError, CheckpointError), match=r"tokenizer"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["model_config.yaml", "tokenizer.model", "tiny.safetensors"])
def test_a_folder_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    folder = copy_folder(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="lacks"):
        read_checkpoint(folder)


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(ModelError, match=r"neither a folder, nor a \.nemo file, nor a hub id"):
        load_model("no/such/thing.nemo")
    with pytest.raises(ModelError, match="no model size 'huge'; there are tiny, small, large"):
        load_model(None, size="huge")


def test_the_first_load_exports_and_later_ones_map_it(tmp_path: Path, weights: Weights) -> None:
    hub = Hub(cache_dir=tmp_path / "hub")
    path = make_nemo(tmp_path / "m.nemo", saved(weights))
    first = load_model(path, hub=hub)
    exports = list(exports_folder(hub).glob("local/*/*"))
    assert [export.name.rpartition("-")[2] for export in exports] == ["float32"]
    stamp = (exports[0] / "model.safetensors").stat().st_mtime_ns
    again = load_model(path, hub=hub)
    assert same(first, again)
    assert (exports[0] / "model.safetensors").stat().st_mtime_ns == stamp
    half = load_model(path, hub=hub, dtype=torch.bfloat16)
    assert half.weights["joint.enc.weight"].dtype == torch.bfloat16
    assert len(list(exports_folder(hub).glob("local/*/*"))) == 2


def test_an_export_is_on_disk_before_it_has_its_name(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power behind the rename could leave zeros under the name of a whole model."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(opened: int) -> None:
        fsync(opened)
        done.append(Path(f"/proc/self/fd/{opened}").readlink().name)

    def note_rename(source: Path, target: Path) -> None:
        assert set(done) >= {path.name for path in source.iterdir()} | {source.name}
        rename(source, target)
        done.append("renamed")

    monkeypatch.setattr("gpu_worker.model.loading.export.os.fsync", note_sync)
    monkeypatch.setattr("gpu_worker.model.loading.export.os.rename", note_rename)
    load_model(make_nemo(tmp_path / "m.nemo", saved(weights)), hub=Hub(cache_dir=tmp_path / "hub"))
    assert done[-1] == "renamed"


def test_a_changed_file_is_exported_anew_and_the_old_export_goes(tmp_path: Path, weights: Weights) -> None:
    hub = Hub(cache_dir=tmp_path / "hub")
    path = make_nemo(tmp_path / "m.nemo", saved(weights))
    load_model(path, hub=hub)
    changed = {**weights, "joint.enc.bias": weights["joint.enc.bias"] + 1}
    make_nemo(path, saved(changed))
    os.utime(path, ns=(1, 1))
    model = load_model(path, hub=hub)
    assert torch.equal(model.weights["joint.enc.bias"], changed["joint.enc.bias"].float())
    assert len(list(exports_folder(hub).glob("local/*/*"))) == 1


def test_a_cache_that_cannot_be_written_costs_the_export_only(
    tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "parakeet-exports").write_text("a file where the folder should be", encoding="utf-8")
    path = make_nemo(tmp_path / "m.nemo", saved(weights))
    model = load_model(path, hub=Hub(cache_dir=tmp_path / "hub"))
    assert same(model, read_checkpoint(TINY))
    assert "cannot be exported" in caplog.text
