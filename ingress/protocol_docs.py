"""Generates from the code parts of docs/protocol.md (state diagram, codes, options), and a part of a client.

`python -m ingress.protocol_docs` writes them; a test fails when a file differs from the code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from common.errors import ERROR_SPECS, WARNING_MEANINGS, ErrorSpec, Retry
from common.options import OPTIONS, StreamOptions
from ingress.protocol import TABLE, Event, State

_ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = _ROOT / "docs" / "protocol.md"
TYPESCRIPT: Final = _ROOT / "clients" / "typescript" / "src" / "errors.ts"

_NEXT: Final = {
    Retry.RESUME: "resume the stream",
    Retry.LATER: "ask again later",
    Retry.ANEW: "begin another stream",
    Retry.NO: "–",
}


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
    lines = [
        "| code | fault of | closes the connection | the client may | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in ERROR_SPECS.values():
        closes = "yes" if spec.closes else "no"
        lines.append(
            f"| `{spec.code.value}` | {spec.fault.value} | {closes} | {_next(spec)} | {spec.meaning} |"
        )
    return "\n".join(lines)


def _next(spec: ErrorSpec) -> str:
    return _NEXT[spec.retry] if spec.closes else "go on"


def retries() -> str:
    """Return what a client may do after each error, in TypeScript."""
    entries = [
        f'  {spec.code.value}: "{spec.retry.value}",'
        for spec in ERROR_SPECS.values()
        if spec.retry is not Retry.NO
    ]
    return "\n".join(("const RETRIES: Readonly<Record<string, Retry>> = {", *entries, "};"))


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
    DOCUMENT: {
        "state diagram": state_diagram,
        "transitions": transition_table,
        "errors": error_table,
        "warnings": warning_table,
        "options": option_table,
    },
    TYPESCRIPT: {"retries": retries},
}


def filled(path: Path) -> str:
    """Return the text of a file with its generated parts replaced."""
    text = path.read_text(encoding="utf-8")
    for name, make in _PARTS[path].items():
        pattern = re.compile(rf"(\S+ begin: {name}\b.*?\n).*?(\S+ end: {name}\b)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{path.name} has no place for '{name}'")
        part = make()
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    """Write the generated parts into their files."""
    for path in _PARTS:
        path.write_text(filled(path), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
