"""A FastAPI application whose users live in Firestore, served through beast mode.

    pip install "beastcore[firestore]" fastapi uvicorn
    GOOGLE_CLOUD_PROJECT=my-project uvicorn fastapi_app:app

With FIRESTORE_EMULATOR_HOST set it talks to the emulator. Each worker process makes its own
optimizer, after the fork, and has a journal of its own in JOURNALS.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from beastmode import (
    AsyncFirestoreStore,
    BeastModeOptimizer,
    Filter,
    FirestoreStore,
    Increment,
    Query,
)
from beastmode import Request as Ask
from beastmode.errors import StoreTimeout, StoreUnavailable

PROJECT = os.environ.get("GOOGLE_CLOUD_PROJECT", "demo-project")
JOURNALS = os.environ.get("JOURNALS", "journals")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the optimizer before the first request; flush and close it after the last."""
    store, async_store = FirestoreStore(PROJECT), AsyncFirestoreStore(PROJECT)
    async with BeastModeOptimizer(store, async_store=async_store, journal_dir=JOURNALS) as beast:
        app.state.beast = beast
        yield
    await async_store.close()
    store.close()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(StoreUnavailable)
@app.exception_handler(StoreTimeout)
async def unavailable(_request: Request, error: Exception) -> JSONResponse:
    """Firestore cannot be reached and nothing may be served stale."""
    return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})


@app.get("/users/{name}")
async def read(name: str, request: Request) -> dict[str, Any]:
    """Return a user; `source` tells whether the cache or Firestore answered."""
    answer = await request.app.state.beast.handle_request(name, Ask.get(f"users/{name}"))
    if answer.data is None:
        raise HTTPException(404, f"there is no user {name}")
    return {"user": answer.data, "source": answer.source}


@app.put("/users/{name}", status_code=202)
async def write(name: str, fields: Annotated[dict[str, Any], Body()], request: Request) -> str:
    """Keep a user: journaled now, in Firestore within a second, seen by this process at once."""
    answer = await request.app.state.beast.handle_request(name, Ask.set(f"users/{name}", fields))
    return str(answer.source)


@app.post("/users/{name}/visits", status_code=202)
async def visit(name: str, request: Request) -> str:
    """Count a visit, exactly once whatever happens to this process."""
    ask = Ask.merge(f"users/{name}", {"visits": Increment(1)})
    return str((await request.app.state.beast.handle_request(name, ask)).source)


@app.get("/users")
async def find(city: str, request: Request) -> list[dict[str, Any]]:
    """Return the users of a city."""
    ask = Ask.query(Query("users", where=(Filter("city", "==", city),), limit=50))
    answer = await request.app.state.beast.handle_request(None, ask)
    return [{"path": found.path, **(found.data or {})} for found in answer.documents or []]


@app.get("/figures")
async def figures(request: Request) -> dict[str, str]:
    """Return the seven key figures."""
    rows = request.app.state.beast.get_performance_stats().rows()
    return {row.title: row.value for row in rows}
