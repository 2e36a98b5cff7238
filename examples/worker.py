"""A worker that books payments from a queue (here: standard input) into Firestore.

    GOOGLE_CLOUD_PROJECT=my-project python worker.py < bookings.txt

Each line, `account amount`, raises a balance. A booking that was acknowledged is applied exactly
once, also if this process is killed: the next start replays its journal.
"""

import os
import signal
import sys
import time

from beastmode import (
    SERVER_TIMESTAMP,
    BeastModeOptimizer,
    FirestoreStore,
    Increment,
    Request,
)

PROJECT = os.environ.get("GOOGLE_CLOUD_PROJECT", "demo-project")
JOURNALS = os.environ.get("JOURNALS", "journals")


def main() -> None:
    """Book every line, then say what it took."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves through the `with` below
    store = FirestoreStore(PROJECT)
    with BeastModeOptimizer(store, journal_dir=JOURNALS) as beast:
        booked = 0
        for line in sys.stdin:
            account, amount = line.split()
            fields = {"balance": Increment(int(amount)), "booked": SERVER_TIMESTAMP}
            beast.handle_request_sync(account, Request.merge(f"accounts/{account}", fields))
            booked += 1
        beast.flush(time.monotonic() + 30)
        commits = beast.get_stats().batcher.commits
        print(f"{booked} bookings in {commits} commits")
    store.close()


if __name__ == "__main__":
    main()
