"""Writes docs/metrics.md from the table of families: `python -m common.monitoring.docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from common.monitoring.families import GROUP, INGRESS, WORKER, Family

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "metrics.md"
_HEAD: Final = """# Metrics

`--metrics-port` opens a port for Prometheus and for health probes in every process (off by default).
`serve` counts up from it: its ingresses first, then its workers. Each process has a port of its own, so
counters never jump between processes. A group of lanes (`--lanes`) has the port of a worker, and its
probes cover all of its lanes; each lane has a port of its own behind it. Ports are on 127.0.0.1 unless
`--metrics-host` says otherwise.

Alert rules and a Grafana dashboard are in [deploy/monitoring](../deploy/monitoring). Beside the families
below, each process shows `parakeet_build_info{version,role}` and `process_*` (memory, CPU, files).
No label names a stream, a client or an address.

This file is written from the code by `python -m common.monitoring.docs`.
"""


def document() -> str:
    """Return the content of docs/metrics.md."""
    parts = (("an ingress", INGRESS), ("a worker, or a lane", WORKER), ("a group of lanes", GROUP))
    return "\n".join((_HEAD, "\n".join(f"## Of {who}\n\n{_table(families)}\n" for who, families in parts)))


def _table(families: tuple[Family, ...]) -> str:
    rows = ["| name | kind | labels | meaning |", "|---|---|---|---|"]
    for family in families:
        values = ", ".join(family.values) if len(family.values) < 10 else "codes of errors"
        label = f"`{family.label}`: {values}" if family.label else ""
        rows.append(f"| `{family.name}` | {family.kind} | {label} | {family.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    sys.stdout.write(f"wrote {DOCUMENT}\n")
