"""Speed, memory and hit ratio of the engine beside other caches and beside its twin.

`python -m benchmarks` measures (`./dev bench` installs the peers first); `python -m
benchmarks.tables` writes the tables of the documentation from benchmarks/results/.
"""

PROGRAMS = {
    "compare": "speed of every operation beside every other cache, and beside the pure twin",
    "bars": "speed beside its targets, with more rounds and fewer contenders",
    "memory": "bytes per entry, and the time of a full garbage collection",
    "worst": "the slowest single operation: mass expiry, growth, deletes, resizes",
    "flood": "keys made to collide",
    "hitrate": "hit ratio on recorded traces",
    "firestore": "the Firestore data path: consistency, loss, recovery, sync, cost, latency",
}
"""Program -> what it measures; each is a module here and has a file of results."""
