"""Print what to install for a test of the declared bounds: ``python requirements/bounds.py BOUND PART``.

BOUND: `newest` for requirements as they are declared, which pip takes at their newest; `lowest` for the
lowest version that each allows.
PART: `ingress`, what ingress processes, clients and their tests need (requirements/ingress.txt and the extra
`test`); `all`, what a worker needs too, with every extra but `nemo`.

torch is left out: the Makefile pins it, since other builds of it bring several GB. Needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED_ELSEWHERE = ("torch", "parakeet-server")
_LOWEST = re.compile(r"(?P<name>[\w.-]+)\s*(>=|==)\s*(?P<version>[\w.]+)[^;]*(?P<marker>;.*)?")


def requirements(part: str) -> list[str]:
    """Return the direct requirements of a part, each once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    if part == "ingress":
        lines = (ROOT / "requirements" / "ingress.txt").read_text(encoding="utf-8").splitlines()
        wanted = [line for line in lines if line and not line.startswith("#")] + extras["test"]
    else:
        wanted = [
            *project["dependencies"],
            *extras["test"],
            *extras["smart-turn"],
            *extras["otel"],
            *extras["bench"],
        ]
    wanted = [line.replace('"', "'") for line in wanted]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted]
    return [line for at, line in enumerate(wanted) if names[at] not in (*names[:at], *PINNED_ELSEWHERE)]


def lowest(requirement: str) -> str:
    """Return a requirement pinned to the lowest version that it allows."""
    found = _LOWEST.fullmatch(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lowest version.")
    return f"{found['name']}=={found['version']}{found['marker'] or ''}"


def main(bound: str, part: str) -> None:
    """Print the requirements, one a line."""
    for requirement in requirements(part):
        sys.stdout.write((lowest(requirement) if bound == "lowest" else requirement) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
