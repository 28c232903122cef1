"""A TCP echo server on io_uring: python examples/echo.py [PORT]"""

import sys

import trio

import uring_trio


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def main(port: int) -> None:
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    print("listening on", address, "with", uring_trio.probe().backend, flush=True)
    await trio.serve_listeners(echo, listeners)


if __name__ == "__main__":
    uring_trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
