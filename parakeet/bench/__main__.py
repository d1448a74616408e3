"""``python -m parakeet.bench``: the bench without the rest of the command line."""

import sys

from common.process.standard_streams import run_command
from common.settings import PROGRAM
from parakeet.bench.command import main

if __name__ == "__main__":
    sys.exit(run_command(f"{PROGRAM} bench", lambda: main(sys.argv[1:])))
