"""``python -m parakeet.bench``: the bench without the rest of the command line."""

import sys

from parakeet.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
