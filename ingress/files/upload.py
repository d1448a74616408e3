"""An uploaded file in a form (multipart/form-data), spooled to a bounded temporary file."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from common.errors import ParakeetError
from ingress.media.decoder import MediaInput
from ingress.media.formats import HEAD_BYTES, NAMES, sniff

logger = logging.getLogger(__name__)

# Bounds of a form beside its file. OpenAI's form has a dozen names, some repeated as lists; the longest field
# is a prompt.
_MAX_FIELDS: Final = 100
_MAX_FIELD_BYTES: Final = 64 << 10
# Starlette decodes fields with any of Python's codecs that the client names: one of them needs a tenth of a
# second for a field, on the event loop, and another fails for every text.
_CHARSETS: Final = (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class BadUpload(Exception):  # noqa: N818 - the name says it
    """An upload that cannot be used.

    param: the field at fault.   code: OpenAI's code, if any.   too_large: whether it is over a bound.
    """

    def __init__(
        self, message: str, param: str | None = None, *, code: str | None = None, too_large: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.too_large = too_large


class DiskFull(ParakeetError):  # noqa: N818 - the name says it
    """The disk for uploads has no room for this one."""


@contextmanager
def on_disk() -> Iterator[None]:
    """Do what writes an upload to disk. Raises DiskFull where that is full, which the log says, too."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        logger.error("%s has no room for an upload: %s", tempfile.gettempdir(), error)
        raise DiskFull("This server has no disk space for the recording; try again later.") from None


@dataclass(frozen=True, slots=True)
class Upload:
    """The fields of a form, and its file, which can be decoded as long as the form is open."""

    form: FormData
    media: MediaInput

    def field(self, name: str) -> str | None:
        """Return the text of a field; None where it is missing."""
        value = self.form.get(name)
        return value if isinstance(value, str) else None

    def fields(self, name: str) -> list[str]:
        """Return the texts of a field that may be repeated, with or without brackets after its name."""
        values = [*self.form.getlist(name), *self.form.getlist(f"{name}[]")]
        return [value for value in values if isinstance(value, str)]


@asynccontextmanager
async def received(request: Request, on_bytes: Callable[[int], None]) -> AsyncIterator[Upload]:
    """Receive the form of a request with one `file`. Raises BadUpload, DiskFull.

    on_bytes: called with the size of each part of the body; an exception from it ends the upload.
    """
    _check_type(request.headers.get("content-type"))
    counted = Request(request.scope, _Counted(request, on_bytes))
    try:
        with on_disk():
            form = await counted.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except HTTPException as error:  # Starlette's error for a malformed form
        raise BadUpload(error.detail) from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadUpload("The form has no file: a part 'file' with a file name.", "file")
        head = await file.read(HEAD_BYTES)
        if not head:
            raise BadUpload("The file is empty.", "file")
        media = sniff(head)
        if media is None:
            raise BadUpload(f"The file is none of {', '.join(NAMES)}.", "file")
        async with _on_disk(file) as descriptor:
            path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
            yield Upload(form, MediaInput(media.demuxer, file=path))
    finally:
        # Not by `form.close()`: it waits for a thread, and a task whose client has left cannot wait.
        for _, value in form.multi_items():
            if isinstance(value, UploadFile):
                value.file.close()


def _check_type(content_type: str | None) -> None:
    """Raise BadUpload for a body that is no form, or a form in a character set that forms do not have."""
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise BadUpload("The recording comes in a form: the body is multipart/form-data.")
    if parameters.get(b"charset", _CHARSETS[0]).lower() not in _CHARSETS:
        raise BadUpload("The fields of a form are UTF-8: its 'charset' is no other.")


@asynccontextmanager
async def _on_disk(upload: UploadFile) -> AsyncIterator[int]:
    """Hold a file on disk, for a decoder that opens it by its descriptor.

    A file that the form keeps in memory is copied. The form would write it in another thread, which goes on
    and leaves its file behind if this task is cancelled.
    """
    if upload.file.name is not None:
        yield upload.file.fileno()
        return
    with on_disk(), tempfile.TemporaryFile() as copy:
        await asyncio.to_thread(_copy, upload.file, copy)
        yield copy.fileno()


def _copy(source: BinaryIO, target: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target)
    target.flush()


class _Counted:
    """Receives a body, and counts its bytes."""

    def __init__(self, request: Request, on_bytes: Callable[[int], None]) -> None:
        self._request = request
        self._on_bytes = on_bytes

    async def __call__(self) -> Message:
        message = await self._request.receive()
        self._on_bytes(len(message.get("body", b"")))
        return message
