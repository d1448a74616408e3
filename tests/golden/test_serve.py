"""The running service beside NeMo offline, over WebSocket connections: no token differs."""

from __future__ import annotations

import pytest

from tests.golden.cache import MODELS
from tests.golden.serve_parity import compare

pytestmark = [pytest.mark.golden, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", [name for name in MODELS if name in ("tiny", "small")])
def test_no_token_differs(name: str) -> None:
    tally = compare(name)
    assert tally.differing == 0
    assert tally.tokens >= 1000
