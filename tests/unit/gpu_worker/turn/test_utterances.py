"""Finals of utterances: exactly the words of their time, at every chunk length and turn setting."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import sentencepiece

from common.entries import StreamId
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.transcript import Tokens, Transcript
from gpu_worker.model.tokenizer import SPACE_MARK, Tokenizer
from gpu_worker.turn.outcome import WINDOW_SAMPLES
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.stage import TurnStage

STREAM = StreamId(1)
FRAME = 1_280
RATE = 16_000
CHUNK_MS = (80, 160, 560, 1_120)
VAD = TurnSettings(signals=frozenset({Signal.VAD}), end_silence_ms=160, auto_finalize=True)


@cache
def characters() -> Tokenizer:
    """A model whose pieces are characters and `<EOU>`: any text in known pieces."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz 0123456789 .,?!' 。你好世界"] * 20),
        model_writer=target,
        vocab_size=100,
        model_type="char",
        hard_vocab_limit=False,
        user_defined_symbols=["<EOU>"],
        minloglevel=2,
    )
    return Tokenizer(target.getvalue())


@dataclass(frozen=True, slots=True)
class Said:
    """A piece at the encoder frame at which the model emits it."""

    frame: int
    piece: str


def play(
    windows: Sequence[float],
    said: Sequence[Said],
    settings: TurnSettings,
    *,
    chunk_ms: int = 160,
    with_words: bool = True,
) -> list[StreamOutput]:
    """The results of a stream of which these windows are speech, and this is what was said."""
    tokenizer = characters()
    pieces = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    stage = TurnStage(eou_id=tokenizer.eou_id)
    transcript = Transcript(tokenizer, 0.08, with_words=with_words, with_starts=True)
    stage.open(STREAM, settings, transcript)
    said = list(said)
    chunk, total, start = chunk_ms * RATE // 1_000, len(windows) * WINDOW_SAMPLES, 0
    while start < total:
        end = min(start + chunk, total)
        is_final = end == total
        here = [one for one in said if one.frame < end // FRAME or is_final]
        said = said[len(here) :]
        tokens = Tokens([pieces[one.piece] for one in here], [one.frame for one in here], [0.9] * len(here))
        probs = windows[start // WINDOW_SAMPLES : end // WINDOW_SAMPLES]
        stage.push(STREAM, tokens, end, is_final=is_final, probs=probs)
        start = end
    return stage.drain()


def course(*parts: tuple[float, int]) -> list[float]:
    return [prob for prob, count in parts for _ in range(count)]


def spell(text: str, frames: Sequence[int]) -> list[Said]:
    """The characters of a word at these frames, the mark of its start with the first."""
    return [
        Said(frames[0], SPACE_MARK),
        *(Said(frame, piece) for frame, piece in zip(frames, text, strict=True)),
    ]


def finals(outputs: Sequence[StreamOutput]) -> list[str]:
    return [one.text for output in outputs for one in output.utterances]


@dataclass(frozen=True, slots=True)
class Phrase:
    """Speech of [start, end) windows, and its words with the frames of their characters."""

    start: int
    end: int
    words: tuple[str, ...]
    said: tuple[Said, ...]

    @property
    def start_s(self) -> float:
        return self.start * WINDOW_SAMPLES / RATE

    @property
    def end_s(self) -> float:
        return self.end * WINDOW_SAMPLES / RATE


def phrases(rng: random.Random) -> list[Phrase]:
    """Two to five phrases 100 to 1,500 ms apart, emitted as late as a model does at most."""
    made: list[Phrase] = []
    window = rng.randint(3, 30)
    for number in range(rng.randint(2, 5)):
        start, end = window, window + rng.randint(12, 60)
        first = -(-(start * WINDOW_SAMPLES + 280 * 16) // FRAME)
        first = max(first, made[-1].said[-1].frame + 1 if made else 0)
        last = (end * WINDOW_SAMPLES + 350 * 16) // FRAME - 1
        frames = sorted(rng.sample(range(first, last + 1), min(4, last + 1 - first)))
        words, said = [], []
        for index, frame in enumerate(frames):
            following = frames[index + 1] if index + 1 < len(frames) else frame + 4
            gap = rng.randint(0, min(4, following - frame))
            word = f"{'abcde'[number]}{'vwxyz'[index]}"
            words.append(word)
            said += spell(word, (frame, frame + gap))
        made.append(Phrase(start, end, tuple(words), tuple(said)))
        window = end + rng.randint(4, 47)
    return made


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("with_eou", [False, True])
def test_a_final_holds_exactly_the_words_of_its_time(seed: int, with_eou: bool) -> None:
    rng = random.Random(seed)
    made = phrases(rng)
    settings = replace(
        VAD,
        signals=frozenset({Signal.VAD, Signal.EOU}),
        min_speech_ms=rng.choice((32, 96, 250)),
        end_silence_ms=rng.choice((96, 160, 320, 640, 1_000)),
        pause_ms=96,
    )
    probs: list[float] = []
    said: list[Said] = []
    for phrase in made:
        probs += course((0.01, phrase.start - len(probs)), (0.99, phrase.end - phrase.start))
        said += phrase.said
        if with_eou:
            said.append(Said(max(said[-1].frame, phrase.end * WINDOW_SAMPLES // FRAME + 2), "<EOU>"))
    said.sort(key=lambda one: one.frame)
    probs += course((0.01, rng.randint(1, 40)))
    told = None
    for chunk_ms in CHUNK_MS:
        outputs = play(probs, said, settings, chunk_ms=chunk_ms)
        utterances = [one for output in outputs for one in output.utterances]
        events = [output for output in outputs if output.turn_detection.endswith("_of_utterance")]
        names = [output.turn_detection for output in events]
        assert names == ["start_of_utterance", "end_of_utterance"] * len(utterances)
        for utterance in utterances:
            mine = [
                word
                for phrase in made
                if utterance.start_s <= phrase.start_s and phrase.end_s <= utterance.end_s
                for word in phrase.words
            ]
            assert utterance.text.split() == mine, f"at {chunk_ms} ms"
        assert " ".join(one.text for one in utterances) == outputs[-1].text
        complete: list[str] = []
        for output in outputs:
            complete += [word.word for word in output.words or ()]
            for utterance in output.utterances:
                assert set(utterance.text.split()) <= set(complete), "its last word is in `words`"
            assert not output.text.endswith(" ")
        assert complete == outputs[-1].text.split()
        same = [(one.number, one.text, one.start_s, one.end_s) for one in utterances]
        assert told in (None, same), "chunks make no difference"
        told = same


def test_start_end_and_start_of_one_chunk_are_three_results() -> None:
    probs = course((0.01, 3), (0.99, 6), (0.01, 12), (0.99, 14), (0.01, 20))
    said = [*spell("one", (5, 6, 7)), *spell("two", (13, 14, 16))]
    outputs = play(probs, said, VAD, chunk_ms=1_120)
    assert [
        (o.samples_decoded, o.turn_detection, o.text, [w.word for w in o.words or ()]) for o in outputs
    ] == [
        (6 * WINDOW_SAMPLES, "start_of_utterance", "", []),
        (14 * WINDOW_SAMPLES, "end_of_utterance", "", []),
        (1_120 * 16, "start_of_utterance", "one t", ["one"]),
        (len(probs) * WINDOW_SAMPLES, "end_of_utterance", "one two", ["two"]),
    ]
    assert finals(outputs) == ["one", "two"]
    assert all(o.is_turn_event for o in outputs)
    assert [o.is_final for o in outputs] == [False, False, False, True]


def test_start_and_end_within_the_last_chunk_are_two_results() -> None:
    outputs = play(course((0.01, 3), (0.99, 8)), spell("go", (4, 4)), VAD)
    assert [(o.turn_detection, o.is_final, o.text) for o in outputs][-2:] == [
        ("start_of_utterance", False, ""),
        ("end_of_utterance", True, "go"),
    ]


def test_a_final_waits_for_the_rest_of_its_last_word() -> None:
    """Its pieces come in two chunks; a word whose next piece does not come is over."""
    probs = course((0.01, 3), (0.99, 20), (0.01, 60))
    # Speech ends at 736 ms, the final is due at 1,216: a piece of 960 ms may still have a next one.
    said = spell("four", (10, 11, 11, 15))
    outputs = play(probs, said, VAD, chunk_ms=80)
    (final,) = [output for output in outputs if output.utterances]
    assert final.utterances[0].text == "four"
    assert [word.word for word in final.words or ()] == ["four"]
    assert final.samples_decoded == 16 * FRAME + 480 * 16


def test_a_mark_of_the_model_after_the_speech_brings_the_final_at_once() -> None:
    probs = course((0.01, 3), (0.99, 20), (0.01, 40), (0.99, 20), (0.01, 40))
    settings = replace(VAD, signals=frozenset({Signal.EOU, Signal.VAD}))
    # The first mark stands 416 ms before the speech ends: a word may still come. The second stands after it.
    said = [*spell("go", (6, 6)), Said(7, "<EOU>"), *spell("on", (29, 30)), Said(34, "<EOU>")]
    outputs = play(probs, said, settings, chunk_ms=80)
    first, second = [output for output in outputs if output.utterances]
    assert first.samples_decoded == 736 * 16 + 480 * 16 + (-(736 + 480) * 16) % FRAME
    assert (second.turn_detection, second.samples_decoded) == ("end_of_utterance", 35 * FRAME)
    assert finals(outputs) == ["go", "on"]
    assert [word.word for word in second.words or ()] == ["on"]


def test_what_comes_after_a_final_begins_a_word() -> None:
    probs = course((0.01, 3), (0.99, 20), (0.01, 40), (0.99, 20), (0.01, 30))
    said = [*spell("for", (10, 10, 11)), Said(24, "t"), Said(30, "y")]
    outputs = play(probs, said, VAD)
    assert finals(outputs) == ["for", "ty"]
    assert [word.word for output in outputs for word in output.words or ()] == ["for", "ty"]
    assert outputs[-1].text == "for ty"


def test_a_word_that_never_ends_holds_no_final_back_for_ever() -> None:
    probs = course((0.01, 3), (0.99, 20), (0.01, 200))
    outputs = play(probs, spell("s" * 80, range(5, 85)), VAD)
    (final,) = [output for output in outputs if output.utterances]
    assert final.samples_decoded <= 736 * 16 + (480 + 2_000 + 160) * 16


def test_a_final_holds_no_words_of_speech_that_is_too_short_yet_to_start_an_utterance() -> None:
    settings = replace(VAD, min_speech_ms=960)
    probs = course((0.01, 3), (0.99, 40), (0.01, 8), (0.99, 60), (0.01, 20))
    said = [*spell("go", (10, 10)), *spell("on", (24, 25))]
    outputs = play(probs, said, settings, chunk_ms=1_120)
    (first, second) = [output for output in outputs if output.utterances]
    assert (first.utterances[0].text, second.utterances[0].text) == ("go", "on")
    assert first.text == "go on", "the word stood there by then"


@pytest.mark.parametrize(
    ("late", "second"),
    [
        (". how", "how"),
        ("?! how", "how"),
        ("。你好", "你好"),
        (" .5", ".5"),
        (" 'tis", "'tis"),
        (".", ""),
    ],
)
def test_punctuation_that_comes_late_does_not_leak_into_the_next_utterance(late: str, second: str) -> None:
    probs = course((0.01, 3), (0.99, 20), (0.01, 40), (0.99, 20), (0.01, 30))
    rest = [Said(30, SPACE_MARK if piece == " " else piece) for piece in late]
    outputs = play(probs, [*spell("fine", (10, 10, 10, 11)), *rest], VAD)
    assert finals(outputs) == ["fine", second]
    assert next(word.word for output in outputs for word in output.words or ()) == "fine"
    assert outputs[-1].text == "fine" + late


def test_scripts_without_spaces_are_divided_by_time_too() -> None:
    probs = course((0.01, 3), (0.99, 20), (0.01, 8), (0.99, 20), (0.01, 30))
    said = [Said(10, "你"), Said(12, "好"), Said(17, "世"), Said(20, "界")]
    for chunk_ms in CHUNK_MS:
        outputs = play(probs, said, VAD, chunk_ms=chunk_ms)
        assert finals(outputs) == ["你好", "世界"]
        assert outputs[-1].text == "你好世界"
