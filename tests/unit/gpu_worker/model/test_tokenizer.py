"""Ids to text and words, whole and piecewise."""

from __future__ import annotations

import io
import itertools

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from common.languages import Languages
from common.phrases import parse_phrases
from gpu_worker.boosting.spelling import spellings
from gpu_worker.engine.transcript import TextState
from gpu_worker.model.errors import TokenizerError
from gpu_worker.model.loading.checkpoint import BUNDLED
from gpu_worker.model.tokenizer import Tokenizer

TINY_PATH = BUNDLED / "tiny" / "tokenizer.model"
TINY = Tokenizer.from_file(TINY_PATH)
REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(TINY_PATH))
EOU = 512


def train_with_bytes() -> Tokenizer:
    """A model with byte fallback, as multilingual checkpoints have, and with marks of its own."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat. The dog, too!", "go forward ten meters"] * 20),
        model_writer=target,
        vocab_size=320,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        user_defined_symbols=["<EOU>", "<EOB>", "<de-DE>", "<odd>"],
        minloglevel=2,
    )
    return Tokenizer(target.getvalue())


BYTES = train_with_bytes()
BYTES_REFERENCE = sentencepiece.SentencePieceProcessor()
BYTES_REFERENCE.LoadFromSerializedProto(BYTES.model)

tiny_ids = st.lists(st.integers(1, EOU - 1), max_size=30)
byte_ids = st.lists(
    st.integers(0, BYTES.vocab_size - 1).filter(
        lambda token: not BYTES_REFERENCE.is_unknown(token) and not BYTES.is_special(token)
    ),
    max_size=30,
)


@given(tiny_ids)
def test_text_equals_sentencepiece(tokens: list[int]) -> None:
    assert TINY.decode(tokens) == REFERENCE.decode(tokens).strip(" ")


@given(byte_ids)
def test_text_with_bytes_equals_sentencepiece(tokens: list[int]) -> None:
    assert BYTES.decode(tokens) == BYTES_REFERENCE.decode(tokens).strip(" ")


@given(byte_ids, st.lists(st.integers(0, 30), max_size=4))
def test_cuts_do_not_change_the_text(tokens: list[int], cuts: list[int]) -> None:
    state = TextState()
    edges = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    for first, end in itertools.pairwise(edges):
        before = state.text
        BYTES.extend(state, tokens[first:end])
        assert state.text.startswith(before)
    assert BYTES.finish(state) == BYTES.decode(tokens)


def test_many_long_texts_are_encoded_as_each_by_itself() -> None:
    texts = [f"{word} " * (3 * number) + word for number, word in enumerate(["a", "the", "hello"] * 30)]
    texts = [*texts, " ".join(["word"] * 2_000), "42", "end"]
    alone = [tokens for text in texts for tokens in TINY.encode([text])]
    assert TINY.encode(texts) == alone
    assert alone[-2] is None
    assert [TINY.decode(tokens) for tokens in alone if tokens] == [text for text in texts if text != "42"]
    assert TINY.encode([]) == []


def test_a_character_of_several_bytes_waits_for_its_last() -> None:
    state = TextState()
    euro = [BYTES_REFERENCE.piece_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    BYTES.extend(state, euro[:2])
    assert state.text == ""
    BYTES.extend(state, euro[2:])
    assert state.text == "€"


def test_marks_of_the_end_never_stand_in_text() -> None:
    hello = REFERENCE.encode("go forward")
    assert TINY.decode([*hello, EOU, *hello]) == "go forward go forward"
    assert TINY.decode([EOU]) == ""
    assert (
        BYTES.decode([BYTES.eou_id or 0, *BYTES_REFERENCE.encode("the cat"), BYTES.eob_id or 0]) == "the cat"
    )


def test_tags_of_languages_never_stand_in_text() -> None:
    cat = BYTES_REFERENCE.encode("the cat")
    assert BYTES.decode([*cat, BYTES_REFERENCE.piece_to_id("<de-DE>"), *cat]) == "the cat the cat"
    assert BYTES.decode([*cat, BYTES_REFERENCE.piece_to_id("<odd>")]) == "the cat<odd>"


def test_a_new_utterance_begins_a_new_word_whatever_its_first_piece() -> None:
    state = TextState()
    TINY.extend(state, REFERENCE.encode("go"))
    TINY.start_utterance(state)
    TINY.extend(state, [REFERENCE.piece_to_id("ing")])
    TINY.start_utterance(state)
    TINY.extend(state, REFERENCE.encode("ten"))
    assert state.text == "go ing ten"


def test_a_file_that_is_no_model() -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer(TINY_PATH.read_bytes()[:1000])


def test_a_damaged_piece() -> None:
    with pytest.raises(TokenizerError, match="is damaged"):
        Tokenizer(TINY_PATH.read_bytes().replace("\u2581th".encode(), b"\xe2\x96(th", 1))


def test_what_begins_a_word_and_what_closes_one() -> None:
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["你好世界。 สวัสดี this, that. ok 다음"] * 20),
        model_writer=target,
        vocab_size=60,
        model_type="char",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(target.getvalue())
    pieces = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    assert {piece for piece in "你世ส▁" if tokenizer.starts_word(pieces[piece])} == set("你世ส▁")
    assert not {piece for piece in "。,.to음" if tokenizer.starts_word(pieces[piece])}
    assert {piece for piece in pieces if tokenizer.is_closing(pieces[piece])} == set("。,.")
    # After an end of utterance a mark still belongs to the word before it, and the next word is a new one.
    state = TextState()
    tokenizer.extend(state, [pieces["o"], pieces["k"]])
    tokenizer.start_utterance(state)
    tokenizer.extend(state, [pieces["."], pieces["t"], pieces["▁"]])
    assert state.text == "ok. t"
    tokenizer.start_utterance(state)
    tokenizer.extend(state, [pieces["▁"], pieces["o"]])
    assert state.text == "ok. t o", "one space, whatever the utterance before ended with"


@pytest.mark.parametrize(
    "text",
    ["Jane Doe", "ZYRTEC", "caf\u00e9", "R2-D2", "don't", "\u65e5\u672c", "two  words", "\uff32edis", "5"],
)
def test_what_its_letters_say_is_what_it_can_spell(text: str) -> None:
    languages = Languages(letters=TINY.letters)
    phrase = parse_phrases([{"text": text, "optional": True}])
    assert languages.can_write(text) == bool(spellings(TINY, phrase)[0])
    assert Languages(letters=BYTES.letters).can_write(text), "bytes spell anything"
