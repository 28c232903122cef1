"""TLS between a connection and its file: what `_tls` encrypts, counted in plaintext.

Users are told of plaintext only: how much the kernel has taken is known when a piece of
ciphertext has been sent whole, and then the plaintext in it counts as written.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from uring_trio.gain._states import Event, State
from uring_trio.gain._tls import TLSLayer

if TYPE_CHECKING:
    from uring_trio.gain._closing import Closing
    from uring_trio.gain._connection import Connection
    from uring_trio.gain._sending import Sending

# Bytes of plaintext that are encrypted for one send, or up to 64 KiB more (see `TLSLayer`).
ENCRYPT_SIZE = 64 << 10


class Secure:
    """The TLS layer of one connection.

    Args:
      context: certificates and policy.
      from_start: the connection begins with it (``tls=``): no callback before the handshake.
    """

    def __init__(self, context: ssl.SSLContext, *, from_start: bool) -> None:
        self.layer = TLSLayer(context)
        self.from_start = from_start
        self._reported = 0  # bytes of plaintext that count as written
        self._in_flight_end = 0  # `plaintext_taken` behind the ciphertext in flight
        self._clear: list[bytes] = []  # written before start_tls(): leaves as it is
        self._clear_sent = 0

    def begin(self, conn: Connection) -> None:
        """Take over a connection; what it has written until now leaves in clear."""
        self._clear = conn._out[:]
        conn._out.clear()
        self.layer.start()

    def received(self, conn: Connection, ciphertext: bytes) -> bytes:
        """The plaintext of what came; an error ends the connection, after the alert is sent."""
        layer = self.layer
        was_done = layer.handshake_done
        try:
            plaintext = layer.feed(ciphertext)
        except ssl.SSLError as exc:
            self._failed(conn, exc)
            return b""
        if layer.handshake_done and not was_done:
            conn._handshake_ended()
        if layer.error is not None:  # behind good records, which are announced first
            conn._fresh += len(plaintext)
            conn._stash()
            conn._buffer = (conn._buffer or bytearray()) + plaintext
            self._failed(conn, layer.error)
            return b""
        if layer.peer_closed:
            conn._eof = True
        if conn._send_slot < 0:
            conn._begin_output()
        return plaintext

    def ended(self, conn: Connection) -> None:
        """The transport has ended."""
        try:
            self.layer.feed_eof()
        except ssl.SSLError as exc:
            self._failed(conn, exc)

    def _failed(self, conn: Connection, exc: ssl.SSLError) -> None:
        if conn._state is State.HANDSHAKE:
            conn.worker.logger.info("TLS handshake with %s failed: %s", conn._name(), exc)
        alert = self.layer.take()
        if alert and conn._send_slot < 0:
            try:
                conn._sock.send(alert)  # non-blocking; the peer may do without
            except OSError:
                pass
        if conn._err is None:
            conn._err = exc
        if conn._unannounced() and conn._state is State.OPEN and not conn._busy:
            return  # told first; see Connection._call_reader
        conn._apply(Event.ABORT)

    def pending(self) -> bool:
        """Whether there is more to be sent."""
        return bool(self._clear) or self.layer.pending

    def next_output(self, conn: Sending) -> bytes:
        """What to send next: clear text first, then ciphertext."""
        for piece in conn._out:
            self.layer.write(piece)
        conn._out.clear()
        if self._clear:
            data = b"".join(self._clear)
            self._clear.clear()
            self._clear_sent = len(data)
            return data
        data = self.layer.take(ENCRYPT_SIZE)
        self._in_flight_end = self.layer.plaintext_taken
        return data

    def accepted(self) -> int:
        """The kernel has all of what was in flight: how many bytes of the user's that were."""
        size = self._in_flight_end - self._reported + self._clear_sent
        self._reported = self._in_flight_end
        self._clear_sent = 0
        return size

    def close(self, conn: Closing) -> None:
        """Queue close_notify behind all that was written."""
        for piece in conn._out:
            self.layer.write(piece)
        conn._out.clear()
        self.layer.close_notify()

    def ssl_object(self) -> Any:
        """For questions such as the peer's certificate."""
        return self.layer.ssl_object
