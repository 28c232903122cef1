"""Echo on uvloop's streams."""

import uvloop

from benchmarks.servers.asyncio_streams import serve

if __name__ == "__main__":
    uvloop.run(serve())
