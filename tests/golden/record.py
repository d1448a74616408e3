"""Keep NeMo's tokens for the bundled model in the repository, for tests that run without NeMo.

`python -m tests.golden.record` reads what `make golden` left and writes tests/golden/recorded/tiny.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.cache import CONTEXTS, Decoding, decoding, reference
from tests.golden.clips import NAMES

RECORDED = Path(__file__).parent / "recorded" / "tiny.json"


def main() -> None:
    """Write tokens, frames and confidences of every recording at every context."""
    entries = [
        {
            "context": list(context),
            "clip": clip,
            "reset": reset,
            **_values(decoding(reference("tiny", context, clip), reset=reset)),
        }
        for context in CONTEXTS["tiny"]
        for clip in NAMES
        for reset in (False, True)
    ]
    RECORDED.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    RECORDED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _values(found: Decoding) -> dict[str, list[int] | list[float]]:
    return {
        "tokens": found.tokens,
        "frames": found.frames,
        "confidences": [round(value, 6) for value in found.confidences],
    }


if __name__ == "__main__":
    main()
