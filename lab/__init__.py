"""What measures, compares, draws and runs many things at once; `dreamer` imports none of it."""

import sys

if "torch" not in sys.modules:
    print("loading PyTorch ...", file=sys.stderr, flush=True)
