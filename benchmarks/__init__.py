"""Speed of the engine beside other caches and beside its pure-Python twin.

`python -m benchmarks` measures (`./dev bench` installs the peers first); `python -m
benchmarks.tables` writes the tables of docs/performance.md from benchmarks/results.json.
"""
