"""What attackers send: messages that are right, so that they can be made wrong, and ways to do that."""

from __future__ import annotations

import base64
import json
import struct
from typing import Final

from benchmarks.garbage_heads import HEADS as HEADS

_SILENCE: Final = bytes(6400)
AUDIO_LINE: Final = (
    json.dumps({"type": "audio", "data": base64.b64encode(_SILENCE).decode()}, separators=(",", ":")).encode()
    + b"\n"
)
NATIVE: Final = (
    b'{"type":"config","words":true,"sample_rate":8000}\n',
    b'{"type":"config","resume":true,"language":"en-US"}\n',
    AUDIO_LINE,
    b'{"type":"audio","samples":[0.1,-0.5,1],"final":true}\n',
    b'{"type":"resume","stream_id":1,"resume_token":"t","last_seq":0,"audio_ack_samples":0}\n',
    b'{"type":"ping"}\n{"type":"finalize"}\n',
    b'{"type":"close"}\n',
)
_LISTEN: Final = (b'{"type":"KeepAlive"}', b'{"type":"Finalize"}', b'{"type":"CloseStream"}')
_REALTIME: Final = (
    b'{"type":"session.update","session":{"type":"transcription","audio":{"input":{"format":{"type":"audio/pcm"}}}}}',
    b'{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(_SILENCE) + b'"}',
    b'{"type":"input_audio_buffer.commit"}',
    b'{"type":"input_audio_buffer.clear"}',
)
ANY_DIALECT: Final = (*NATIVE, *_LISTEN, *_REALTIME)

WAV: Final = (
    b"RIFF"
    + struct.pack("<I", 36 + len(_SILENCE))
    + b"WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    + b"data"
    + struct.pack("<I", len(_SILENCE))
    + _SILENCE
)
RECORDINGS: Final = (
    WAV,
    b"fLaC" + bytes(200),
    b"OggS" + bytes(200),
    b"ID3\x04" + bytes(200),
    b"\x1aE\xdf\xa3" + bytes(200),
    b"\0\0\0\x18ftypM4A " + bytes(200),
)


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A frame of a client; its mask changes nothing, which is allowed."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack(">H", size)
    else:
        length = b"\xff" + struct.pack(">Q", size)
    return bytes((0x80 * fin | opcode,)) + length + bytes(4) + payload


def upgrade(path: str, key: str, extra: bytes = b"") -> bytes:
    """The head that opens a WebSocket; `key` empty for none."""
    head = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return head.encode() + extra + b"\r\n"


def upload_head(path: str, key: str, size: int | None) -> bytes:
    """The head of an upload; size None says it in chunks."""
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: audio/wav\r\n"
    if path.endswith("transcriptions"):
        head = head.replace("audio/wav", "multipart/form-data; boundary=b")
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    head += "Transfer-Encoding: chunked\r\n" if size is None else f"Content-Length: {size}\r\n"
    return head.encode() + b"\r\n"
