"""Echo on stock trio."""

import trio

from benchmarks.servers.trio_echo import serve

if __name__ == "__main__":
    trio.run(serve)
