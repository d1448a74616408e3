"""docs/protocol.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ErrorCode
from common.options import OPTIONS
from ingress.protocol import State
from ingress.protocol_docs import DOCUMENT, TYPESCRIPT, filled, state_diagram


@pytest.mark.parametrize("path", [DOCUMENT, TYPESCRIPT], ids=lambda path: path.name)
def test_the_generated_parts_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == filled(path), "run `python -m ingress.protocol_docs`"


def test_nothing_is_left_out() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for code in ErrorCode:
        assert f"| `{code.value}` |" in text
    for option in OPTIONS:
        assert f"| `{option.name}` |" in text
    diagram = state_diagram()
    for state in State:
        assert f" {state.name}" in diagram
