"""TLS between a connection and its file: what `_tls` encrypts, counted in plaintext.

Users are told of plaintext only: how much the kernel has taken is known when a piece of
ciphertext has been sent whole, and then the plaintext in it counts as written. What was
written before ``start_tls`` leaves first and in clear, and counts as it goes.

This knows nothing of connections: it is given bytes and returns bytes, and what is to
become of an error is for `_connection` to say.
"""

from __future__ import annotations

import ssl

from uring_trio.gain._tls import TLSLayer

# Bytes of plaintext that are encrypted for one send, or up to 64 KiB more (see `TLSLayer`).
ENCRYPT_SIZE = 64 << 10


class Secure:
    """The TLS layer of one connection.

    Args:
      context: certificates and policy.

    Attributes:
      handshaking: the handshake is to be done, and needs input whatever the user needs.
      truncated: the transport ended without close_notify, after the handshake.

    Raises:
      ssl.SSLError: the context is not one for servers.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._layer = TLSLayer(context)
        self.handshaking = True
        self.truncated: ssl.SSLError | None = None
        self._reported = 0  # bytes of plaintext that count as written
        self._in_flight_end = 0  # `plaintext_taken` behind the ciphertext in flight
        self._clear: list[bytes] = []  # written before start_tls(): leaves as it is
        self._sends_clear = False  # what is in flight was never encrypted

    def take_over(self, clear: list[bytes], *, in_flight: bool) -> None:
        """Begin in the middle of a connection.

        Args:
          clear: written until now, and not sent.
          in_flight: a send of more is in flight.
        """
        self._clear = clear
        self._sends_clear = in_flight

    # ---- input ---------------------------------------------------------------------------

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's close_notify has come."""
        return self._layer.peer_closed

    @property
    def error(self) -> ssl.SSLError | None:
        """What ended TLS here; input that came before it has been returned."""
        return self._layer.error

    def received(self, ciphertext: bytes) -> bytes:
        """The plaintext of what came; see `error` afterwards."""
        try:
            return self._layer.feed(ciphertext)
        except ssl.SSLError:
            return b""
        finally:
            if self._layer.handshake_done:
                self.handshaking = False

    def transport_ended(self) -> ssl.SSLError | None:
        """Take note of the peer's FIN; the error, unless close_notify came before."""
        try:
            self._layer.feed_eof()
        except ssl.SSLError as exc:
            if self._layer.handshake_done:
                self.truncated = exc
            return exc
        return None

    # ---- output --------------------------------------------------------------------------

    def pending(self) -> bool:
        """Whether there is more to be sent."""
        return bool(self._clear) or self._layer.pending

    def encrypt(self, written: list[bytes]) -> None:
        """Take what was written off its queue."""
        for piece in written:
            self._layer.write(piece)
        written.clear()

    def next_output(self, written: list[bytes]) -> bytes:
        """What to send next: clear text first, then ciphertext, also of what is *written*."""
        self.encrypt(written)
        self._sends_clear = bool(self._clear)
        if self._clear:
            data = b"".join(self._clear)
            self._clear.clear()
            return data
        data = self._layer.take(ENCRYPT_SIZE)
        self._in_flight_end = self._layer.plaintext_taken
        return data

    def last_words(self) -> bytes:
        """After an error: clear text that was not sent, and the alert."""
        data = b"".join(self._clear) + self._layer.take()
        self._clear.clear()
        return data

    def accepted(self, size: int, *, whole: bool) -> int:
        """How many of the user's bytes it means that the kernel has taken *size* more.

        Args:
          size: bytes of what is in flight.
          whole: there is nothing left of it.
        """
        if self._sends_clear:
            return size
        if not whole:
            return 0
        plaintext = self._in_flight_end - self._reported
        self._reported = self._in_flight_end
        return plaintext

    def close(self, written: list[bytes], *, unsent: bool) -> None:
        """Queue close_notify behind all that was written.

        A handshake goes on only if something of that is *unsent*, and waits for it.
        """
        self.handshaking = self.handshaking and unsent
        self.encrypt(written)
        self._layer.close_notify()
