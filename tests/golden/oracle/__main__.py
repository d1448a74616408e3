"""Make the checkpoints and references of the golden tests, those that are not there yet.

Run with NeMo's interpreter from the repository's root:
`.venv-nemo/bin/python -m tests.golden.oracle --cache tests/golden/.cache [NAME ...]`
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent


def fingerprint() -> str:
    """Of everything that the references depend on: this folder's sources, the clips, the tiny model."""
    digest = hashlib.sha256()
    tiny = HERE.parents[2] / "gpu_worker" / "model" / "bundled" / "tiny" / "tiny.safetensors"
    for path in (*sorted(HERE.glob("*.py")), HERE.parent / "clips.py", tiny):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for checkpoints and references")
    parser.add_argument("names", nargs="*", help="checkpoints; without any: tiny small prompted variant")
    arguments = parser.parse_args()
    os.environ.setdefault("NEMO_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    from tests.golden.oracle.checkpoints import make_checkpoint
    from tests.golden.oracle.recipes import RECIPES
    from tests.golden.oracle.references import count_tokens, make_references

    names = arguments.names or ["tiny", "small", "prompted", "variant"]
    stamp = fingerprint()
    for name in names:
        folder = arguments.cache / name
        done = folder / "made-by"
        if done.is_file() and done.read_text(encoding="ascii") == stamp:
            print(f"{name}: there already", flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.monotonic()
        make_checkpoint(RECIPES[name], folder / f"{name}.nemo")
        made = time.monotonic()
        make_references(RECIPES[name], folder / f"{name}.nemo", folder)
        done.write_text(stamp, encoding="ascii")
        print(
            f"{name}: checkpoint {made - started:.0f} s, references {time.monotonic() - made:.0f} s, "
            f"{count_tokens(folder, [name])[name]} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
