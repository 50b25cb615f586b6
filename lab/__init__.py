"""What measures, compares, draws and runs many things at once; `dreamer` imports none of it.

Whoever imports it first can no longer be stopped by what is printed: a full disk, a closed pipe, a
terminal that lacks a letter.
"""

import contextlib
import os
import sys

sys.stdout = sys.stdout or open(os.devnull, "w")  # None: closed by `>&-`
sys.stderr = sys.stderr or open(os.devnull, "w")
if "torch" not in sys.modules:
    with contextlib.suppress(OSError):
        print("loading PyTorch ...", file=sys.stderr, flush=True)

from dreamer.training import Quiet  # noqa: E402

sys.stdout, sys.stderr = Quiet(sys.stdout), Quiet(sys.stderr)
