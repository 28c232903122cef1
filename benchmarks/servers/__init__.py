"""The programs that are compared, each in a process of its own.

``python -m benchmarks.servers.NAME LOOP SERVICE`` prints its port on the first line, serves
until its standard input ends, and answers questions on it. A program is a way to write a
server: trio's streams, asyncio's streams, asyncio's protocols, callbacks of gain. SERVICE is
what it does, and each program has the same ones, as its documentation would have them written:

    echo       what comes goes back
    deadline   the same with a deadline of 30 s around each receive (streams only)
    sink       what comes is dropped
    source     64 KiB and again 64 KiB, until the client leaves
    accept     one byte, an x, and the end
    ask        1 KiB is awaited and sent back, and the end
    http       plain text by ``responder.py`` to each request
    tls        echo under TLS
    unix       echo on a UNIX socket
    udp        each datagram goes back
"""
