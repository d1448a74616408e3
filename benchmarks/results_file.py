"""How a benchmark writes its results: a JSON file, and beside it the tables that a reader sees."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from parakeet.bench.report import commit

ROOT: Final = Path(__file__).parents[1]


def in_checkout(path: str | Path) -> str:
    """Return a path of this checkout without the folder of the checkout: results are read elsewhere."""
    return str(path).removeprefix(f"{ROOT}/")


def write_results(
    path: Path, title: str, facts: Mapping[str, object], tables: Sequence[str], **results: Any
) -> None:
    """Write results as JSON, and tables as Markdown beside it.

    facts: what was measured, and on what; date, commit and command are added.   tables: lines of Markdown.
    """
    # Without the folders of this machine.
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    today = datetime.now(UTC).date().isoformat()
    header = {
        "date": today,
        "commit": commit(),
        "command": " ".join((f"python -m benchmarks.{Path(sys.argv[0]).stem}", *words)),
        **facts,
    }
    path.write_text(json.dumps({**header, **results}, indent=1) + "\n")
    lines = [f"# {title}: {today}", "", *(f"- {name}: {fact}" for name, fact in header.items()), "", *tables]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
