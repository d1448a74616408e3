"""Errors of audio that a client is to send."""

from __future__ import annotations

from common.errors import ServiceError


class BadAudio(ServiceError):  # noqa: N818 - the name says it
    """Audio that cannot be read, or a device that is not there."""
