"""An uploaded file in a form (multipart/form-data), spooled to a bounded temporary file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from ingress.media.formats import HEAD_BYTES, NAMES, MediaFormat, sniff

_MAX_FIELDS: Final = 100
_MAX_FIELD_BYTES: Final = 64 << 10


class BadUpload(Exception):  # noqa: N818 - the name says it
    """An upload that is none; `param` names the field, `too_large` one over the bound."""

    def __init__(self, message: str, param: str | None = None, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.param = param
        self.too_large = too_large


class UploadsBusy(Exception):  # noqa: N818 - the name says it
    """As many uploads are held as may be at once."""


class Uploads:
    """Bounds the disk that uploads take: at most `max_held` of them are there at once."""

    def __init__(self, max_held: int) -> None:
        self._max_held = max_held
        self._num_held = 0

    @property
    def num_held(self) -> int:
        """How many are there."""
        return self._num_held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an upload, from its first byte on. Raises UploadsBusy."""
        if self._num_held >= self._max_held:
            raise UploadsBusy(f"This server holds {self._max_held} recordings at once; try again later.")
        self._num_held += 1
        try:
            yield
        finally:
            self._num_held -= 1


@dataclass(frozen=True, slots=True)
class Upload:
    """The fields of a form, and its file. path: where the file can be opened while the form is held."""

    form: FormData
    path: Path
    media: MediaFormat

    def field(self, name: str) -> str | None:
        """Return the text of a field; None where it is missing."""
        value = self.form.get(name)
        return value if isinstance(value, str) else None

    def fields(self, name: str) -> list[str]:
        """Return the texts of a field that may be repeated, with or without brackets behind its name."""
        values = [*self.form.getlist(name), *self.form.getlist(f"{name}[]")]
        return [value for value in values if isinstance(value, str)]


@asynccontextmanager
async def received(request: Request, max_bytes: int) -> AsyncIterator[Upload]:
    """Receive the form of a request with one `file`. Raises BadUpload."""
    bounded = Request(request.scope, _Bounded(request, max_bytes))
    try:
        form = await bounded.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except MultiPartException as error:
        raise BadUpload(error.message) from None
    except Exception as error:
        if isinstance(error, BadUpload):
            raise
        if type(error).__name__ == "HTTPException":  # what Starlette makes of a MultiPartException
            raise BadUpload(str(getattr(error, "detail", error))) from None
        raise
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadUpload("The form has no file: a part 'file' with a file name.", "file")
        head = await file.read(HEAD_BYTES)
        media = sniff(head)
        if media is None:
            raise BadUpload(f"The file is none of {', '.join(NAMES)}.", "file")
        # A file of its own, also where the form kept it in memory: the decoder opens it by name.
        file.file.rollover()  # type: ignore[attr-defined]
        yield Upload(form, Path(f"/proc/{os.getpid()}/fd/{file.file.fileno()}"), media)
    finally:
        await form.close()


class _Bounded:
    """Receives a body, as far as its bound."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._left = max_bytes

    async def __call__(self) -> Message:
        message = await self._request.receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            mib = self._max_bytes / (1 << 20)
            raise BadUpload(f"The upload is over {mib:g} MiB (--max-upload-mb).", "file", too_large=True)
        return message
