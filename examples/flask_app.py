"""A Flask application whose users live in Firestore, served through beast mode.

    pip install "beastcore[firestore]" flask
    GOOGLE_CLOUD_PROJECT=my-project flask --app flask_app run

Servers that fork their workers (gunicorn, uWSGI) import this module before the fork, so nothing is
opened here: `beast()` makes the optimizer of a process at its first request.
"""

import atexit
import os
import threading
from typing import Any

from flask import Flask, abort, jsonify, request
from flask.typing import ResponseReturnValue

from beastmode import BeastModeOptimizer, FirestoreStore, Request
from beastmode.errors import StoreTimeout, StoreUnavailable

PROJECT = os.environ.get("GOOGLE_CLOUD_PROJECT", "demo-project")
JOURNALS = os.environ.get("JOURNALS", "journals")

app = Flask(__name__)
_lock = threading.Lock()
_made: dict[str, Any] = {}


def beast() -> BeastModeOptimizer:
    """Return the optimizer of this process."""
    with _lock:
        if "beast" not in _made:
            store = FirestoreStore(PROJECT)
            _made["beast"] = BeastModeOptimizer(store, journal_dir=JOURNALS).start()
            atexit.register(_close, _made["beast"], store)
        found: BeastModeOptimizer = _made["beast"]
        return found


def _close(optimizer: BeastModeOptimizer, store: FirestoreStore) -> None:
    optimizer.close()  # flushes: what Firestore does not take stays in the journal
    store.close()


@app.errorhandler(StoreUnavailable)
@app.errorhandler(StoreTimeout)
def unavailable(error: Exception) -> ResponseReturnValue:
    """Firestore cannot be reached and nothing may be served stale."""
    return jsonify(error=str(error)), 503, {"Retry-After": "1"}


@app.get("/users/<name>")
def read(name: str) -> ResponseReturnValue:
    """Return a user; `source` tells whether the cache or Firestore answered."""
    answer = beast().handle_request_sync(name, Request.get(f"users/{name}"))
    if answer.data is None:
        abort(404, f"there is no user {name}")
    return jsonify(user=answer.data, source=answer.source)


@app.put("/users/<name>")
def write(name: str) -> ResponseReturnValue:
    """Keep a user: journaled now, in Firestore within a second, seen by this process at once."""
    fields = request.get_json()
    answer = beast().handle_request_sync(name, Request.set(f"users/{name}", fields))
    return jsonify(source=answer.source), 202
