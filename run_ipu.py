#!/usr/bin/env python3
"""The one program: train, validate, doctor. ``python run_ipu.py --help`` says more."""

import sys

from ipu_proxynorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
