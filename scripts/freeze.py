"""Prints constraints.txt: the installed versions, less the CUDA packages, the installers and ourselves."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions

HEADER = """\
# Versions that `make test` was last run with: `pip install -c constraints.txt ...`. CUDA packages are
# left out: the torch build that is chosen brings its own. Renew with `make constraints`."""
LEFT_OUT = re.compile(r"^(nvidia-.*|cuda-.*|triton|pip|setuptools|wheel|uv|find-fix-reason)$")


def main() -> int:
    """Writes the file to standard output; a version with a local part (`+cpu`) is cut at the plus sign."""
    pins: set[str] = set()
    for found in distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        if not LEFT_OUT.match(name):
            pins.add(f"{name}=={found.version.split('+')[0]}")
    print(HEADER, *sorted(pins), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
