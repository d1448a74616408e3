"""Snapshots: what is read of one that another engine wrote."""

from __future__ import annotations

import pytest

from gpu_worker.engine.snapshot import phrases_in


@pytest.mark.parametrize("snapshot", [b"", b"PXS", b"PXS0" + bytes(20)])
def test_a_snapshot_that_cannot_be_read_says_nothing_of_phrases(snapshot: bytes) -> None:
    assert phrases_in(snapshot) is None
