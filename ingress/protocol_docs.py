"""Generates parts of docs/protocol.md from the code: state diagram, codes, options.

`python -m ingress.protocol_docs` writes them; a test fails when the file differs from the code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from common.errors import ERROR_SPECS, WARNING_MEANINGS
from common.options import OPTIONS, StreamOptions
from ingress.protocol import TABLE, Event, State

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "protocol.md"


def state_diagram() -> str:
    """Return the connection's table of states and events as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.ADMITTING.name}"]
    for state, transitions in TABLE.items():
        by_target: dict[State, list[str]] = {}
        for event, transition in transitions.items():
            by_target.setdefault(transition.state, []).append(event.name.lower())
        for target, events in by_target.items():
            lines.append(f"    {state.name} --> {target.name}: {', '.join(events)}")
    lines += [f"    {State.CLOSED.name} --> [*]", "```"]
    return "\n".join(lines)


def transition_table() -> str:
    """Return the same as a Markdown table: the actions of each event in each state."""
    states = [state for state in State if state is not State.CLOSED]
    lines = [
        "| event | " + " | ".join(state.name for state in states) + " |",
        "|---|" + "---|" * len(states),
    ]
    for event in Event:
        cells = []
        for state in states:
            transition = TABLE[state].get(event)
            if transition is None:
                cells.append("")
                continue
            actions = ", ".join(action.name.lower().replace("_", " ") for action in transition.actions)
            code = f" `{transition.error.value}`" if transition.error is not None else ""
            arrow = "" if transition.state is state else f" → {transition.state.name}"
            cells.append(f"{actions or 'ignore'}{code}{arrow}")
        lines.append(f"| {event.name.lower()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def error_table() -> str:
    """Return the table of error codes, with what each promises."""
    lines = ["| code | fault of | closes the connection | meaning |", "|---|---|---|---|"]
    for spec in ERROR_SPECS.values():
        closes = "yes" if spec.closes else "no"
        lines.append(f"| `{spec.code.value}` | {spec.fault.value} | {closes} | {spec.meaning} |")
    return "\n".join(lines)


def warning_table() -> str:
    """Return the table of warning codes, with the meaning of each."""
    lines = ["| code | meaning |", "|---|---|"]
    lines += [f"| `{code.value}` | {meaning} |" for code, meaning in WARNING_MEANINGS.items()]
    return "\n".join(lines)


def option_table() -> str:
    """Return the table of the options of `config`."""
    defaults = StreamOptions()
    lines = ["| option | takes | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        default = getattr(defaults, option.name)
        shown = "–" if default is None else str(default).lower()
        lines.append(f"| `{option.name}` | {option.takes()} | {shown} | {option.help} |")
    return "\n".join(lines)


_PARTS: Final = {
    "state diagram": state_diagram,
    "transitions": transition_table,
    "errors": error_table,
    "warnings": warning_table,
    "options": option_table,
}


def filled(text: str) -> str:
    """Return the document with its generated parts replaced."""
    for name, make in _PARTS.items():
        pattern = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"docs/protocol.md has no place for '{name}'")
        part = make()
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    """Write the generated parts into docs/protocol.md."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
