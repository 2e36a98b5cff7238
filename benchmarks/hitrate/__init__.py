"""`python -m benchmarks hitrate [TRACE ...] [--json FILE]`: hit ratio on recorded traces.

Replays every trace of the folder that BEASTCORE_TRACES names through the real compiled `Cache`, at
0.1, 1, 5, 10 and 25 % of its unique keys, and through other caches in the same way; beside them
stand Belady's rule and, where the folder holds reference_hit_ratios.csv, simulated policies.
Nothing is timed here, so cells run in parallel.
"""

from benchmarks.hitrate.report import main, render, render_short

__all__ = ["main", "render", "render_short"]
