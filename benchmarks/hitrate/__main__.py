"""`python -m benchmarks.hitrate`: the same as `python -m benchmarks hitrate`."""

import sys

from benchmarks.hitrate import main

sys.exit(main(sys.argv[1:]))
