"""Echo on trio with io_uring: the same server, another run()."""

import uring_trio
from benchmarks.servers.trio_echo import serve

if __name__ == "__main__":
    uring_trio.run(serve, backend="io_uring")
