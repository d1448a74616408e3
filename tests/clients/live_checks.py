"""What must hold between the messages of one live connection, for each protocol."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from tests.clients.conversation import TEXT, Conversation

Messages = Sequence[dict[str, Any]]

_SAME_TIME_S: Final = 0.011
_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription"


def _asked(conversation: Conversation) -> Counter[str]:
    """How often the client sent each type of message."""
    texts = (frame.payload for frame in conversation.from_client if frame.opcode == TEXT)
    return Counter(json.loads(text)["type"] for text in texts)


def native_order(messages: Messages) -> Iterator[str]:
    """Yield what is wrong between messages of our own protocol."""
    if not messages or messages[0]["type"] != "hello":
        yield "the first message is no hello"
    results = [message for message in messages if message["type"] == "result"]
    seq = acked = 0
    for result in results:
        if result.get("seq_first", result["seq"]) != seq + 1:
            yield f"result {result['seq']} follows {seq}"
        if len(result["token_ids"]) != len(result["confidence_scores"]):
            yield f"result {result['seq']}: tokens and their confidence are not aligned"
        if result["audio_ack_samples"] < acked:
            yield f"result {result['seq']} takes an acknowledgement back"
        seq, acked = result["seq"], result["audio_ack_samples"]
    if [result["is_final"] for result in results] != [False] * (len(results) - 1) + [True]:
        yield "not the last result, and no other, is final"


def deepgram_order(conversation: Conversation, messages: Messages) -> Iterator[str]:
    """Yield what is wrong between messages of `/v1/listen`."""
    asked = _asked(conversation)
    query = parse_qs(conversation.exchanges[-1].request.target.partition("?")[2])
    results = [message for message in messages if message["type"] == "Results"]
    request_id = conversation.exchanges[-1].response.headers.get("dg-request-id")
    for message in messages:
        named = message.get("request_id") or message.get("metadata", {}).get("request_id", request_id)
        if named != request_id:
            yield f"{message['type']} names request {named}, the upgrade {request_id}"
        if message["type"] == "Error":
            yield f"an error: {message}"
    for channel in sorted({result["channel_index"][0] for result in results}):
        yield from _segments([result for result in results if result["channel_index"][0] == channel])
    if query.get("interim_results") != ["true"] and not all(result["is_final"] for result in results):
        yield "an interim result that nobody asked for"
    answered = sum(result["from_finalize"] for result in results)
    channels = max((result["channel_index"][1] for result in results), default=1)
    due = asked["Finalize"] * channels
    if answered > due or (answered < due and not conversation.client_left):
        yield f"{asked['Finalize']} Finalize and {answered} answers"
    if query.get("vad_events") != ["true"] and any(one["type"] == "SpeechStarted" for one in messages):
        yield "a SpeechStarted that nobody asked for"
    if "utterance_end_ms" not in query and any(one["type"] == "UtteranceEnd" for one in messages):
        yield "an UtteranceEnd that nobody asked for"
    ended = [number for number, message in enumerate(messages) if message["type"] == "Metadata"]
    if ended and ended != [len(messages) - 1]:
        yield "Metadata is not the last message, or not the only one of its kind"


def _segments(results: Messages) -> Iterator[str]:
    """Yield what is wrong between the results of one channel."""
    final_until = 0.0
    for result in results:
        start, end = result["start"], result["start"] + result["duration"]
        if abs(start - final_until) > _SAME_TIME_S:
            yield f"a result begins at {start:g} s, the last final one ended at {final_until:g} s"
        if result["is_final"]:
            final_until = end
        elif result["speech_final"] or result["from_finalize"]:
            yield "an interim result ends the speech, or answers a Finalize"
        (alternative,) = result["channel"]["alternatives"]
        words = alternative["words"]
        said = " ".join(word["punctuated_word"] for word in words)
        # The last word of an interim result may still grow: it is a word once it is whole.
        whole = said == alternative["transcript"]
        if not whole and (result["is_final"] or not alternative["transcript"].startswith(said)):
            yield f"the words are not those of {alternative['transcript']!r}: {words}"
        if not words and alternative["confidence"]:
            yield "an empty result has a confidence"
        times = [time for word in words for time in (word["start"], word["end"])]
        if times != sorted(times):
            yield f"the times of words do not rise: {times}"


def realtime_order(conversation: Conversation, messages: Messages) -> Iterator[str]:
    """Yield what is wrong between events of `/v1/realtime`."""
    kinds = [message["type"] for message in messages]
    if not kinds or kinds[0] not in ("session.created", "transcription_session.created"):
        yield f"the first event is {kinds[:1]}"
    ids = Counter(message["event_id"] for message in messages)
    yield from (f"event id {name} came {count} times" for name, count in ids.items() if count > 1)
    yield from (f"an error: {message}" for message in messages if message["type"] == "error")
    asked = _asked(conversation)
    for update, answer in (
        ("session.update", "session.updated"),
        ("transcription_session.update", "transcription_session.updated"),
    ):
        if asked[update] != kinds.count(answer):
            yield f"{asked[update]} {update} and {kinds.count(answer)} answers"
    yield from _items(messages)


def _items(messages: Messages) -> Iterator[str]:
    """Yield what is wrong between the events of items."""
    committed: list[str] = []
    finished: list[str] = []
    for item_id in dict.fromkeys(_item_of(message) for message in messages if _item_of(message)):
        own = [message for message in messages if _item_of(message) == item_id]
        kinds = [message["type"] for message in own]
        added = "".join(message["delta"] for message in own if message["type"] == f"{_TRANSCRIPTION}.delta")
        ends = [message for message in own if message["type"] == f"{_TRANSCRIPTION}.completed"]
        if ends and added and added != ends[0]["transcript"]:
            yield f"the deltas of {item_id} are {added!r}, its transcript {ends[0]['transcript']!r}"
        order = [kind for kind in kinds if kind != f"{_TRANSCRIPTION}.delta"]
        if order not in [whole[: len(order)] for whole in _ORDERS]:
            yield f"events of {item_id} came as {order}"
    before = None
    for message in messages:
        if message["type"] == "input_audio_buffer.committed":
            if message["previous_item_id"] != before:
                yield f"{message['item_id']} names {message['previous_item_id']}, but follows {before}"
            before = message["item_id"]
            committed.append(before)
        elif message["type"] in (f"{_TRANSCRIPTION}.completed", f"{_TRANSCRIPTION}.failed"):
            finished.append(message["item_id"])
    if finished != committed[: len(finished)]:
        yield f"items were committed as {committed} and finished as {finished}"


_COMMIT: Final = ["input_audio_buffer.committed"]
_TODAY: Final = ["conversation.item.added", "conversation.item.done"]
_OLD: Final = ["conversation.item.created"]
_SPEECH: Final = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
_ORDERS: Final = [
    [*speech, *_COMMIT, *items, f"{_TRANSCRIPTION}.{end}"]
    for speech in ([], _SPEECH, _SPEECH[:1])
    for items in (_TODAY, _OLD)
    for end in ("completed", "failed")
]


def _item_of(message: dict[str, Any]) -> str:
    return str(message.get("item_id") or message.get("item", {}).get("id") or "")
