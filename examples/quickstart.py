"""Serve documents through beast mode from an embedded store, and see what it saved."""

import asyncio
import tempfile
from pathlib import Path

from beastmode import BeastModeOptimizer, Request


async def main(store: Path) -> None:
    """Write one document, read it a thousand times."""
    async with BeastModeOptimizer(store, cache_ttl_s=60) as optimizer:
        optimizer.connections.add_connection("ada")
        await optimizer.handle_request("ada", Request.set("users/ada", {"langs": ["Python"]}))
        await asyncio.to_thread(optimizer.flush)  # or wait a second: the store has it by then
        for _ in range(1_000):
            response = await optimizer.handle_request("ada", Request.get("users/ada"))
        print(response.data, "from", response.source)
        for kpi in optimizer.get_performance_stats().rows():
            print(f"{kpi.title:24}{kpi.value:20}{kpi.rating}")


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder) / "app.db"))
