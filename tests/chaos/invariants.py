"""What must hold for every stream, whatever was done to the cluster (docs/invariants.md has the numbers)."""

from __future__ import annotations

from typing import Any

from tests.chaos.client import StreamLog

# What is a function of the audio and the options, result by result.
_SAME = ("text", "last_state", "turn_detection", "is_final")
# Batches of other sizes add float32 numbers up in another order: probabilities agree to so much.
_TOLERANCE = 1e-3
_JOINED = ("token_ids", "confidence_scores", "words", "utterances")


def violations(log: StreamLog, undisturbed: StreamLog) -> list[str]:
    """Every promise that this stream saw broken, in words; none for a stream that was served as promised."""
    if log.failure is not None:
        return [f"ended without its final result: {log.failure}"]
    found = _order(log) + _finals(log) + _samples(log)
    if not found:
        found += _content(log, undisturbed)
    return found


def _order(log: StreamLog) -> list[str]:
    """Results are numbered without gaps; none comes twice or out of order, on any connection."""
    found = []
    last = 0
    for number, contact in enumerate(log.contacts):
        if contact.last_seq is not None and contact.last_seq != last:
            found.append(f"connection {number} asked for results after {contact.last_seq}, had {last}")
        for _, message in contact.received:
            if message["type"] != "result":
                continue
            first = message.get("seq_first", message["seq"])
            if first != last + 1 or message["seq"] < first:
                found.append(f"result {first}..{message['seq']} came after {last}")
            last = message["seq"]
    return found


def _finals(log: StreamLog) -> list[str]:
    finals = [result["is_final"] for result in log.results]
    if finals.count(True) != 1 or not finals[-1]:
        return [f"{finals.count(True)} final results, the last result is_final={finals[-1:]}"]
    return []


def _samples(log: StreamLog) -> list[str]:
    """Acknowledged audio only grows, and at the end all of it is decoded."""
    found = []
    acks = [result["audio_ack_samples"] for result in log.results]
    if acks != sorted(acks):
        found.append("audio_ack_samples went back")
    if acks[-1] != log.clip.num_samples:
        found.append(f"{acks[-1]} of {log.clip.num_samples} samples were decoded")
    found += [
        "resumed behind the end of the audio"
        for contact in log.contacts
        if contact.resumed_at is not None and contact.resumed_at > log.clip.num_samples
    ]
    return found


def _content(log: StreamLog, undisturbed: StreamLog) -> list[str]:
    """Each result is that of the undisturbed run; a merged one is the join of those it stands for."""
    found = []
    expected = {result["seq"]: result for result in undisturbed.results}
    for result in log.results:
        first, last = result.get("seq_first", result["seq"]), result["seq"]
        if last not in expected:
            return [f"result {last} is none of the undisturbed run's {len(expected)}"]
        found += [
            f"{name} of result {last}: {result.get(name)!r}, not {expected[last].get(name)!r}"
            for name in _SAME
            if result.get(name) != expected[last].get(name)
        ]
        for name in _JOINED:
            joined: list[Any] = [
                item for seq in range(first, last + 1) for item in expected[seq].get(name) or ()
            ]
            if not _alike(list(result.get(name) or ()), joined):
                found.append(f"{name} of result {first}..{last} differ")
    if log.results[-1]["seq"] != undisturbed.results[-1]["seq"]:
        found.append("the number of results differs")
    return found


def _alike(got: Any, wanted: Any) -> bool:
    """Equal, but for the last digits of probabilities."""
    if isinstance(got, float) and isinstance(wanted, float):
        return abs(got - wanted) <= _TOLERANCE
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_alike, got, wanted))
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(_alike(got[key], wanted[key]) for key in got)
    return bool(got == wanted)
