"""The command `python -m gpu_worker.model inspect|export|fetch MODEL`, which `parakeet-server model` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.process.standard_streams import complain, run_command
from common.process.version import package_version
from common.settings import PROGRAM
from gpu_worker.model.errors import ModelError
from gpu_worker.model.loading.carrying import fetch
from gpu_worker.model.loading.export import DTYPES
from gpu_worker.model.loading.inspection import describe, export

_PROGRAM = f"{PROGRAM} model"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three commands.

    Return the exit status: 2 for a model that cannot be used, 1 where a file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog=_PROGRAM, description="Look into a model, export it, or fetch it beforehand."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {package_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect", help="show architecture, contexts, size and memory a stream of a checkpoint"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    exporting = commands.add_parser(
        "export", help="write a checkpoint as a folder of safetensors, config and tokenizer"
    )
    exporting.add_argument("--output", type=Path, required=True, help="folder to make")
    exporting.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="type of the tensors (default: float32)"
    )
    fetching = commands.add_parser("fetch", help="fetch a model of the hub, for a host without network")
    fetching.add_argument("--output", type=Path, help="folder to make, which --model takes on another host")
    fetching.add_argument("model", metavar="MODEL", help="small, large or a hub id")
    fetching.add_argument("--model-revision", default="main", help="branch, tag or commit of the hub")
    for command in (inspect, exporting):
        command.add_argument("path", metavar="PATH", help="folder, .nemo file, hub id, or tiny|small|large")
        command.add_argument("--model-revision", default="main", help="branch, tag or commit of the hub")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "inspect":
            text = describe(arguments.path, arguments.model_revision, as_json=arguments.json)
        elif arguments.command == "fetch":
            text = fetch(arguments.model, arguments.model_revision, arguments.output)
        else:
            text = export(arguments.path, arguments.model_revision, arguments.output, arguments.dtype)
    except (ModelError, OSError) as error:
        complain(f"{_PROGRAM}: {error}")
        return 2 if isinstance(error, ModelError) else 1
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(_PROGRAM, main))
