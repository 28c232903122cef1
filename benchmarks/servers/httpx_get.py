"""An httpx client that asks for one small page: ``httpx_get.py LOOP TASKS PORT``."""

from __future__ import annotations

import sys

import httpx

from benchmarks.servers import work


def main() -> None:
    """One client for all tasks, as its documentation wants it; connections are kept."""
    client = httpx.AsyncClient(trust_env=False)
    url = f"http://127.0.0.1:{sys.argv[3]}/"

    async def get() -> None:
        answer = await client.get(url)
        answer.raise_for_status()

    work.run(sys.argv[1], int(sys.argv[2]), get)


if __name__ == "__main__":
    main()
