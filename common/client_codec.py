"""JSON codec of the messages from clients: servers decode them, and clients encode them.

Decoding is strict about the fields that it uses and ignores unknown fields, so that a newer client can talk
to an older server; options (common/options.py) are the exception. A field that is null counts as missing.
"""

from __future__ import annotations

import binascii
import json
import re
import sys
from array import array
from collections.abc import Callable
from math import isfinite, isnan, nan
from typing import Any, Final

import orjson

from common.errors import ClientFault, ErrorCode, shown
from common.messages import (
    Audio,
    Auth,
    ClientMessage,
    Close,
    Config,
    Encoding,
    Finalize,
    Phrases,
    Ping,
    Resume,
)
from common.options import StreamOptions, parse_options
from common.phrases import encode_phrases, parse_phrases

# With SIMD instructions, decoding takes a fifteenth of binascii's time, which was the largest single part of
# an ingress's work on a message.
_b64decode: Callable[..., bytes] | None
try:
    from pybase64 import b64decode as _b64decode
except ImportError:
    _b64decode = None

_F32: Final = Encoding.F32
_ENCODINGS: Final = {encoding.value: encoding for encoding in Encoding}
_NAMES: Final = ", ".join(f"'{name}'" for name in _ENCODINGS)

# Highest bytes of float32 values below 2**127, all of which are finite.
_SURELY_FINITE: Final = bytes(byte for byte in range(256) if byte & 0x7F != 0x7F)
# First bytes from a client that takes the TCP port for another protocol.
_HTTP_REQUEST: Final = re.compile(r"[A-Z]+ \S+ HTTP/")
_BYTE_ORDER_MARK: Final = "\ufeff"
# An integer with more digits is read as a float, as orjson does; Python refuses to read thousands of digits.
_INTEGER_DIGITS: Final = 19


def decode_client_message(
    data: bytes | bytearray | memoryview | str, encoding: Encoding = Encoding.PCM16
) -> ClientMessage:
    """Decode one line or text frame of a client.

    encoding: encoding of `data` in a message that names none.
    Raises ClientFault, whose code and sentence describe the fault of the message.
    """
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        fields = _decode_leniently(data)
    if type(fields) is not dict:
        raise ClientFault(ErrorCode.BAD_MESSAGE, "A message must be a JSON object.")
    kind = fields.get("type")
    if kind == "audio":
        return _decode_audio(fields, encoding)
    if type(kind) is not str:
        raise ClientFault(ErrorCode.BAD_MESSAGE, "A message must have a string 'type'.")
    decode = _CLIENT_DECODERS.get(kind)
    if decode is None:
        raise ClientFault(ErrorCode.UNKNOWN_TYPE, f"There is no message type {shown(kind)}.")
    return decode(fields)


def _decode_audio(fields: dict[str, Any], encoding: Encoding) -> Audio:
    final = fields.get("final", False)
    if final is not True and final is not False:
        if final is not None:
            raise _bad_field("audio", "final", "true or false", final)
        final = False
    data = fields.get("data")
    samples = fields.get("samples")
    name = fields.get("encoding")
    if name is not None:
        named = _ENCODINGS.get(name) if type(name) is str else None
        if named is None:
            raise ClientFault(
                ErrorCode.WRONG_ENCODING, f"'encoding' must be one of {_NAMES}, not {shown(name)}."
            )
        encoding = named
    if type(data) is str:
        if samples is not None:
            raise ClientFault(ErrorCode.BAD_FIELD, "'audio' carries either 'data' or 'samples', not both.")
        try:
            payload = decode_base64(data)
        except ValueError as error:  # binascii.Error, or an error for a non-ASCII string
            raise ClientFault(
                ErrorCode.BAD_BASE64, f"'data' is not base64: {str(error).rstrip('.')}."
            ) from None
        return checked_audio(payload, encoding, final)
    if data is not None:
        raise _bad_field("audio", "data", "a base64 string", data)
    if samples is None:
        if final:
            return Audio(b"", encoding, True)
        raise ClientFault(ErrorCode.BAD_FIELD, "'audio' needs 'data' or 'samples'.")
    if type(samples) is not list:
        raise _bad_field("audio", "samples", "a list of numbers", samples)
    return checked_audio(_packed_samples(samples), _F32, final)


def checked_audio(payload: bytes, encoding: Encoding, final: bool = False) -> Audio:
    """Return the audio of a client's payload.

    Raises ClientFault `odd_byte_count` if it ends within a sample, and `bad_samples` for a float that is not
    finite.
    """
    if len(payload) & (encoding.sample_bytes - 1):
        raise odd_byte_count(len(payload), encoding)
    if encoding is _F32 and payload[3::4].translate(None, _SURELY_FINITE):
        values = array("f")
        values.frombytes(payload)
        if not all(map(isfinite, _little_endian(values))):
            raise _not_finite()
    return Audio(payload, encoding, final)


def decode_base64(data: str | bytes | memoryview) -> bytes:
    """Decode base64 strictly. Raises ValueError with a reason that can be shown to the client."""
    if _b64decode is not None:
        try:
            return _b64decode(data, validate=True)
        except ValueError:
            pass  # its reason is always the same: binascii, which is as strict, says more
    return binascii.a2b_base64(data, strict_mode=True)


def _packed_samples(samples: list[Any]) -> bytes:
    # Python counts true as 1.
    if bool in set(map(type, samples)):
        raise ClientFault(ErrorCode.BAD_SAMPLES, "A sample must be a number, not true or false.")
    try:
        values = array("f", samples)
    except TypeError:
        wrong = next(sample for sample in samples if not isinstance(sample, (int, float)))
        raise ClientFault(ErrorCode.BAD_SAMPLES, f"A sample must be a number, not {shown(wrong)}.") from None
    except OverflowError:
        raise _not_finite() from None
    return _little_endian(values).tobytes()


def _little_endian(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _decode_config(fields: dict[str, Any]) -> Config:
    return Config(parse_options({name: fields[name] for name in fields if name != "type"}))


def _decode_phrases(fields: dict[str, Any]) -> Phrases:
    phrases = fields.get("phrases")
    if phrases is None:
        raise _bad_field("phrases", "phrases", "a list", None)
    return Phrases(parse_phrases(phrases))


def _decode_resume(fields: dict[str, Any]) -> Resume:
    token = fields.get("resume_token")
    if type(token) is not str:
        raise _bad_field("resume", "resume_token", "a string", token)
    return Resume(
        stream_id=_count(fields, "stream_id"),
        resume_token=token,
        last_seq=_count(fields, "last_seq"),
        audio_ack_samples=_count(fields, "audio_ack_samples"),
    )


def _decode_auth(fields: dict[str, Any]) -> Auth:
    token = fields.get("token")
    if type(token) is not str:
        raise ClientFault(ErrorCode.BAD_FIELD, "'token' of 'auth' must be a string.")
    return Auth(token)


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise _bad_field("resume", name, "an integer of at least 0", value)
    return value


_CLIENT_DECODERS: Final[dict[str, Callable[[dict[str, Any]], ClientMessage]]] = {
    "close": lambda fields: Close(),
    "finalize": lambda fields: Finalize(),
    "ping": lambda fields: Ping(),
    "config": _decode_config,
    "phrases": _decode_phrases,
    "resume": _decode_resume,
    "auth": _decode_auth,
}

CLIENT_MESSAGE_TYPES: Final = frozenset(("audio", *_CLIENT_DECODERS))
"""The types of messages that a client can send."""


def _decode_leniently(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode JSON that orjson refuses, as far as it is harmless.

    A lone surrogate or a number beyond float64 is harmless in an unused field; elsewhere the check of the
    field refuses it.

    Raises ClientFault with the cause for text that is no JSON.
    """
    constants: list[str] = []

    def constant(name: str) -> float:
        constants.append(name)
        return nan

    try:
        text = data if isinstance(data, str) else str(data, "utf-8")
        fields = json.loads(text, parse_int=_integer, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise _bad_json(f"it is not UTF-8, from byte {error.start} on") from None
    except RecursionError:
        raise _bad_json("it is nested too deep") from None
    except ValueError as error:
        raise _bad_json(_cause(text, error)) from None
    if constants:
        # Python's and other encoders write numbers that are not finite as bare words, which JSON does not
        # have: samples with them get an error of their own.
        samples = fields.get("samples") if isinstance(fields, dict) else None
        if isinstance(samples, list) and any(
            isinstance(sample, float) and isnan(sample) for sample in samples
        ):
            raise _not_finite()
        raise _bad_json(f"JSON has no {constants[0]}")
    return fields


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _INTEGER_DIGITS else float(digits)


def _cause(text: str, error: ValueError) -> str:
    if _HTTP_REQUEST.match(text):
        return "it is an HTTP request"
    if text.startswith(_BYTE_ORDER_MARK):
        return "it begins with a byte order mark"
    return str(error).rstrip(".")


def _bad_json(cause: str) -> ClientFault:
    return ClientFault(ErrorCode.BAD_JSON, f"This is not JSON: {cause}.")


def _not_finite() -> ClientFault:
    return ClientFault(ErrorCode.BAD_SAMPLES, "Every sample must be a finite number within float32.")


def odd_byte_count(num_bytes: int, encoding: Encoding) -> ClientFault:
    """Return the fault of audio that ends within a sample."""
    return ClientFault(
        ErrorCode.ODD_BYTE_COUNT,
        f"{num_bytes} bytes are not a whole number of {encoding.value} samples "
        f"({encoding.sample_bytes} bytes each).",
    )


def _bad_field(message: str, name: str, takes: str, value: object) -> ClientFault:
    got = "nothing" if value is None else shown(value)
    return ClientFault(ErrorCode.BAD_FIELD, f"'{name}' of '{message}' is {takes}, not {got}.")


def encode_client_message(message: ClientMessage) -> bytes:
    """Encode a message as the client sends it, without the newline of the TCP framing."""
    match message:
        case Audio(payload, encoding, final):
            fields: dict[str, Any] = {
                "type": "audio",
                "encoding": encoding.value,
                "data": binascii.b2a_base64(payload, newline=False).decode("ascii"),
            }
            if final:
                fields["final"] = True
        case Config(options):
            fields = {"type": "config", **_options_fields(options)}
        case Phrases(phrases):
            fields = {"type": "phrases", "phrases": orjson.Fragment(encode_phrases(phrases))}
        case Resume():
            fields = {
                "type": "resume",
                "stream_id": message.stream_id,
                "resume_token": message.resume_token,
                "last_seq": message.last_seq,
                "audio_ack_samples": message.audio_ack_samples,
            }
        case Close():
            fields = {"type": "close"}
        case Finalize():
            fields = {"type": "finalize"}
        case Ping():
            fields = {"type": "ping"}
        case Auth(token):
            fields = {"type": "auth", "token": token}
    return orjson.dumps(fields)


def _options_fields(options: StreamOptions) -> dict[str, Any]:
    """Return only the options that differ from the defaults: an older server knows fewer options."""
    defaults = StreamOptions()
    return {
        name: getattr(options, name)
        for name in StreamOptions.__slots__
        if getattr(options, name) != getattr(defaults, name)
    }
