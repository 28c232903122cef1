"""A UDP server that answers, and tells others: python examples/gain_udp.py [PORT [WORKERS]]

A datagram `subscribe` puts its sender on a list. Every other datagram is echoed to its
sender, and a copy of it goes to each subscriber.
"""

from __future__ import annotations

import sys
import threading

from uring_trio import gain

# A datagram in makes so many out, and its sender may be forged: keep it small, and do not
# put such a server on the internet.
SUBSCRIBERS_MAX = 100


class Handler(gain.EventHandler):
    def __init__(self) -> None:
        # Workers are threads that share this handler: changed under the lock, and only by
        # a new tuple in the old one's place, so that a reader needs no lock.
        self.subscribers: tuple[gain.Address, ...] = ()
        self.lock = threading.Lock()

    def on_start(self, server: gain.Server) -> None:
        for address in server.addresses():
            print(f"listening on {address}", flush=True)

    def on_read(self, conn: gain.Conn, n: int) -> None:
        # One datagram: `n` is its length, and 0 is a datagram as well.
        data = conn.next(n)
        sender = conn.remote_addr()
        if data == b"subscribe":
            conn.write(b"subscribed" if self.subscribe(sender) else b"full")
            return
        conn.write(data)
        for subscriber in self.subscribers:
            conn.send_to(data, subscriber)

    def subscribe(self, address: gain.Address) -> bool:
        with self.lock:
            if address in self.subscribers:
                return True
            if len(self.subscribers) >= SUBSCRIBERS_MAX:
                return False
            self.subscribers = (*self.subscribers, address)
            return True


def main(port: int = 8080, workers: int | None = None) -> None:
    gain.listen_and_serve(f"udp://127.0.0.1:{port}", Handler(), workers=workers)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
