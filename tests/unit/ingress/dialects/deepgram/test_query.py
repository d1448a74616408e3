"""What the query of `GET /v1/listen` asks for, and how a wrong one is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.languages import ENGLISH, UNKNOWN, Languages
from common.messages import Encoding
from common.phrases import DEFAULT_BOOST, MAX_BOOST, Phrase
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.deepgram.refusals import shaped
from ingress.http.refusal import Refusal, Refused
from ingress.media.wanted import MediaWanted

DOCS = Path(__file__).parents[5] / "docs"
_RAW = "encoding=linear16&sample_rate=16000"


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("linear16", Encoding.PCM16),
        ("linear32", Encoding.F32),
        ("mulaw", Encoding.MULAW),
        ("alaw", Encoding.ALAW),
    ],
)
@pytest.mark.parametrize("rate", [8000, 24000, 48000])
def test_samples(name: str, encoding: Encoding, rate: int) -> None:
    query = parse_listen_query(f"encoding={name}&sample_rate={rate}")
    assert (query.encoding, query.options.sample_rate, query.media) == (encoding, rate, None)
    assert (query.options.words, query.options.auto_finalize) == (True, True)


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("", MediaWanted()),
        ("encoding=opus&sample_rate=48000", MediaWanted(packets=True)),
        ("encoding=opus&sample_rate=16000&channels=2", MediaWanted(packets=True, channels=2)),
        ("encoding=ogg-opus", MediaWanted("ogg")),
        ("encoding=flac&sample_rate=44100", MediaWanted("flac")),
        ("channels=2&multichannel=true", MediaWanted(mix=False, channels=2)),
    ],
)
def test_compressed_audio(text: str, media: MediaWanted) -> None:
    query = parse_listen_query(text)
    assert (query.media, query.options.sample_rate) == (media, None)


@pytest.mark.parametrize("stated", ["redact=false", "redact=", "callback=", "redact=False&callback=false"])
def test_what_is_refused_may_be_turned_off(stated: str) -> None:
    assert parse_listen_query(f"{_RAW}&{stated}").encoding is Encoding.PCM16


@pytest.mark.parametrize(("multichannel", "num_streams"), [("true", 3), ("false", 1)])
def test_channels_are_streams_or_are_mixed(multichannel: str, num_streams: int) -> None:
    query = parse_listen_query(f"{_RAW}&channels=3&multichannel={multichannel}")
    assert (query.channels, query.num_streams) == (3, num_streams)


@pytest.mark.parametrize(
    ("value", "signals", "silence_ms", "ends_speech"),
    [
        (None, None, None, True),
        ("true", None, None, True),
        ("false", None, None, False),
        ("300", "vad", 300, True),
        ("10", "vad", 32, True),
        ("0", "vad", 32, True),
    ],
)
def test_endpointing(
    value: str | None, signals: str | None, silence_ms: int | None, ends_speech: bool
) -> None:
    query = parse_listen_query(_RAW if value is None else f"{_RAW}&endpointing={value}")
    options = query.options
    assert (options.turn_signals, options.turn_silence_ms, query.ends_speech) == (
        signals,
        silence_ms,
        ends_speech,
    )
    assert options.turn_max_pause_ms == silence_ms  # which a worker brings in line with the rest


def test_what_the_clients_send_by_default_is_taken() -> None:
    pipecat = (
        "model=nova-3-general&language=en&encoding=linear16&sample_rate=16000&channels=1&multichannel=false"
        "&interim_results=true&punctuate=true&smart_format=false&diarize=false&dictation=false&numerals=false"
        "&detect_entities=false"
    )
    livekit = (
        "model=nova-3&language=en-US&encoding=linear16&sample_rate=16000&channels=1&interim_results=true"
        "&punctuate=true&smart_format=false&no_delay=true&vad_events=true&endpointing=25&filler_words=true"
        "&profanity_filter=false&numerals=false&mip_opt_out=false"
    )
    assert parse_listen_query(pipecat).interim
    query = parse_listen_query(livekit)
    assert (query.interim, query.vad_events, query.options.language) == (True, True, None)


@pytest.mark.parametrize(
    ("languages", "tag", "option"),
    [
        (ENGLISH, "en-GB", None),
        (ENGLISH, "multi", None),
        (ENGLISH, "", None),
        (UNKNOWN, "fr", None),
        (Languages(("en-US", "de-DE"), prompted=True), "de-CH", "de-DE"),
        (Languages(("en-US", "de-DE"), prompted=True), "multi", None),
    ],
)
def test_a_language_is_the_models_option(languages: Languages, tag: str, option: str | None) -> None:
    assert parse_listen_query(f"{_RAW}&language={tag}", languages).options.language == option


def test_a_language_that_the_model_does_not_have_is_400() -> None:
    with pytest.raises(Refused) as error:
        parse_listen_query(f"{_RAW}&language=de", ENGLISH)
    refusal = error.value.refusal
    assert refusal.status == 400
    body = json.loads(refusal.body or b"")
    assert body["err_code"] == "INVALID_QUERY_PARAMETER"
    assert body["err_msg"] == 'The model does not have the language "de"; it has en.'


def test_key_terms_and_keywords_become_phrases() -> None:
    query = parse_listen_query(
        f"{_RAW}&keyterm=Parakeet%20server&keyterm=&keyterm=Redis&keywords=&keywords=snafu:2&keywords=bar:-3&keywords=a:b"
    )
    assert query.options.phrases == (
        Phrase("Parakeet server", optional=True),
        Phrase("Redis", optional=True),
        Phrase("snafu", 2 * DEFAULT_BOOST, optional=True),
        Phrase("bar", 0.0, optional=True),
        Phrase("a:b", optional=True),
    )


def test_intensifiers_are_mapped_as_the_table_of_the_documents_says() -> None:
    text = (DOCS / "deepgram.md").read_text(encoding="utf-8")
    table = text[text.index("### Keywords") : text.index("## Results")]
    rows = re.findall(r"^\| (`word.*?) \| ([\d.]+)", table, re.MULTILINE)
    assert len(rows) == 7
    for keywords, boost in rows:
        for keyword in re.findall(r"`(.*?)`", keywords):
            (phrase,) = parse_listen_query(f"{_RAW}&keywords={keyword}").options.phrases
            found = DEFAULT_BOOST if phrase.boost is None else phrase.boost
            assert phrase.text == "word"
            assert found == pytest.approx(float(boost))
    for beyond in ("word:1e9", "word:inf"):
        (phrase,) = parse_listen_query(f"{_RAW}&keywords={beyond}").options.phrases
        assert phrase.boost == MAX_BOOST
    with pytest.raises(Refused):
        parse_listen_query(f"{_RAW}&keywords=word:nan")


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("encoding=linear16", "sample_rate"),
        ("encoding=linear16&sample_rate=7999", "8000 to 48000"),
        ("encoding=linear16&sample_rate=48001", "8000 to 48000"),
        ("encoding=linear16&sample_rate=16k", "sample_rate"),
        ("encoding=speex&sample_rate=16000", "encoding"),
        (f"{_RAW}&channels=9", "channels"),
        (f"{_RAW}&channels=0", "channels"),
        (f"{_RAW}&multichannel=maybe", "multichannel"),
        (f"{_RAW}&interim_results=1", "interim_results"),
        (f"{_RAW}&endpointing=-1", "endpointing"),
        (f"{_RAW}&endpointing=soon", "endpointing"),
        (f"{_RAW}&utterance_end_ms=x", "utterance_end_ms"),
        (f"{_RAW}&redact=pci", "redact"),
        (f"{_RAW}&redact=pci&redact=false", "redact"),
        (f"{_RAW}&callback=http://a", "callback"),
        (f"{_RAW}&keyterm=%00", "'keyterm' takes phrases"),
        (f"{_RAW}&keywords=%00", "'keywords' takes phrases"),
        ("&".join(["keyterm=a"] * 1001), "1000 fields"),
        ("&".join(["keyterm=a"] * 501), "500"),
    ],
)
def test_a_wrong_query_is_refused_in_the_way_that_clients_read(text: str, about: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_listen_query(text)
    refusal = caught.value.refusal
    assert refusal.status == 400
    assert refusal.body is not None
    body = json.loads(refusal.body)
    assert body["err_code"] == "INVALID_QUERY_PARAMETER"
    assert about in body["err_msg"]
    headers = dict(refusal.headers)
    assert headers["dg-request-id"] == body["request_id"]
    assert about in headers["dg-error"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "INVALID_AUTH"),
        (403, "INSUFFICIENT_PERMISSIONS"),
        (404, "Bad Request"),
        (500, "INTERNAL_SERVER_ERROR"),
    ],
)
def test_refusals_of_others_get_the_same_shape(status: int, code: str) -> None:
    refusal = shaped(Refusal(status, "Größe\n", (("WWW-Authenticate", "Bearer"),)))  # type: ignore[arg-type]
    assert refusal.content_type == "application/json"
    assert json.loads(refusal.content)["err_code"] == code
    headers = dict(refusal.headers)
    assert headers["WWW-Authenticate"] == "Bearer"
    assert headers["dg-error"] == "Gr??e?"
