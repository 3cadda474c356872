#!/usr/bin/env python3
"""``ipu-proxynorm`` from a checkout: ``python run_ipu.py --help`` lists its commands."""

import sys

from ipu_proxynorm.__main__ import run

if __name__ == "__main__":
    sys.exit(run())
