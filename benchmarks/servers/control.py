"""The other end of ``benchmarks.processes.ServerProcess``; imports no event loop.

A thread reads standard input, so that the loop under test has nothing more to watch.
It sleeps in read(2) and costs nothing while nobody asks.
"""

from __future__ import annotations

import os
import resource
import ssl
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


# As much as trio's receive_some() takes at most, so that all servers may read alike.
RECEIVE_BYTES = 65536
# What `source` sends at a time.
CHUNK = bytes(65536)
# What `ask` waits for and sends back.
ASK_BYTES = 1024
# asyncio's 100 would drop some of 1,000 clients that connect at once; the kernel cuts it to
# net.core.somaxconn, 4096 since 5.4.
BACKLOG = 4096
DEADLINE_S = 30.0

# Where the certificate is that a server of `tls` shows, its key behind it.
CERTIFICATE = "URING_TRIO_BENCHMARK_CERTIFICATE"


def server_context() -> ssl.SSLContext:
    """TLS with the certificate that the benchmark has made."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ[CERTIFICATE])
    return context


def unix_number() -> int:
    """What stands for a port on UNIX sockets: a number that no other process has."""
    return os.getpid()


def unix_name(number: int) -> str:
    """The abstract name that goes with it, without the leading NUL; loadgen.c has it too."""
    return f"uring_trio-benchmark-{number}"


def allow_many_connections() -> None:
    """Lift the soft limit of file descriptors, 1,024 by default, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(port: int, answer: Callable[[str], str] | None = None) -> None:
    """Print the port; from now on answer each line, and end when there are no more."""
    threading.Thread(target=follow, args=(answer,), daemon=True).start()
    print(port, flush=True)


def follow(answer: Callable[[str], str] | None) -> None:
    """Answer requests until the input ends, then end the process."""
    for request in sys.stdin:
        print(answer(request.strip()) if answer else "unknown", flush=True)
    os._exit(0)
