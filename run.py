#!/usr/bin/env python3
"""UniForget on this machine: ``python run.py demo``, ``python run.py test``, ``python run.py comfyui``."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (this file starts on any Python, to say so)
    sys.exit("run.py: Python 3.10 or newer is needed, this is %s. Start it with a newer one." % sys.version.split()[0])  # noqa: UP031

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
