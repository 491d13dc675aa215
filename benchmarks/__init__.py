"""The benchmark commands, `python -m benchmarks.<command>` from the checkout; README.md says what each measures."""

import os
import sys

if "--wheels-only" in sys.argv:  # before subspace is imported, which looks for its compiled kernels
    os.environ["SUBSPACE_NATIVE"] = "0"
