"""TLS for one connection, without I/O: ciphertext in, plaintext out, and the other way.

`ssl.SSLObject` between two `ssl.MemoryBIO` does the work. What it leaves to us:

- Plaintext that is written before the handshake is done waits here, and so does plaintext
  for which OpenSSL first wants to read (it may while it renegotiates, in TLS 1.2 only). It
  then has to be offered again unchanged, so the piece on offer is kept apart.
- Plaintext is encrypted when the ciphertext is asked for, a piece at a time: a connection
  with 32 MiB to send holds them once, not twice. `TLSLayer.plaintext_taken` says how much
  plaintext the ciphertext carries, because users are told of plaintext only.
- Any call that takes ciphertext in may put ciphertext out: handshake messages, session
  tickets, an alert. So `TLSLayer.take` follows every `TLSLayer.feed`, also one that raised:
  the peer is to see the alert.
- OpenSSL calls both an end with close_notify and one without "end of file" under some
  options. Here the first is `TLSLayer.peer_closed` and the second always an error, because
  without close_notify anybody on the path can cut a message short.
- One piece of input may hold good records and then a bad one. The good plaintext is
  returned; the error waits in `TLSLayer.error` and is raised by the next call.
"""

from __future__ import annotations

import ssl
from collections import deque

# The largest plaintext of a TLS record (RFC 8446, 5.1): small writes are joined up to it.
RECORD_SIZE_MAX = 16 * 1024
# What OpenSSL is given at once: four records save three of four calls, and more saves little.
PIECE_SIZE_MAX = 4 * RECORD_SIZE_MAX


class TLSLayer:
    """One end of a TLS connection whose bytes somebody else carries.

    Not for use by two threads at once.

    Args:
      context: certificates and policy.
      server_side: whether this is the server's end.
      server_hostname: for a client: the name to ask for and to check.

    Raises:
      ssl.SSLError: the context does not suit that end.
      ValueError: *context* wants a server's name to check and there is none.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._queue: deque[bytes | memoryview] = deque()
        self._piece: bytes | memoryview = b""  # on offer to OpenSSL, no longer in the queue
        self._closing = False
        self._wants_read = False  # before it writes; see above
        self.handshake_done = False
        self.peer_closed = False  # its close_notify has come
        self.close_sent = False  # ours has been taken
        self.error: ssl.SSLError | None = None  # what ended the layer; raised by the next feed
        self.unsent = 0  # bytes of plaintext that were written and not yet taken
        self.plaintext_taken = 0  # bytes of plaintext in all the ciphertext taken so far

    @property
    def pending(self) -> bool:
        """Whether `take` has anything to return."""
        if self._outgoing.pending:
            return True
        if not self.handshake_done or self.error is not None or self._wants_read:
            return False
        return self.unsent > 0 or (self._closing and not self.close_sent)

    def start(self) -> None:
        """Begin the handshake: a client's first message can be taken afterwards.

        Raises:
          ssl.SSLError: no handshake is possible under this context.
        """
        self._raise_error()
        self._advance_handshake()
        self._raise_error()

    def feed(self, ciphertext: bytes | bytearray | memoryview) -> bytes:
        """Take in what came from the peer and return the plaintext that became readable.

        Whatever follows the peer's close_notify is thrown away.

        Raises:
          ssl.SSLError: the handshake failed, or what came is no valid TLS. The alert for
            the peer can be taken.
        """
        self._raise_error()
        if self.peer_closed:
            return b""
        self._incoming.write(ciphertext)
        self._wants_read = False
        if not self.handshake_done:
            self._advance_handshake()
        plaintext = self._read() if self.handshake_done else b""
        if not plaintext:
            self._raise_error()
        return plaintext

    def feed_eof(self) -> bool:
        """Take note that the transport has ended: True if close_notify came before.

        Raises:
          ssl.SSLEOFError: it did not, so the input may have been cut short.
          ssl.SSLError: what an earlier `feed` still had to raise.
        """
        self._raise_error()
        if self.peer_closed:
            return True
        # Not an end of the layer: what is written may still be sent.
        when = "without close_notify" if self.handshake_done else "during the handshake"
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, f"the peer ended the connection {when}")

    def write(self, plaintext: bytes | bytearray | memoryview) -> None:
        """Queue *plaintext*; `bytes` are kept, any other buffer is copied.

        Raises:
          RuntimeError: after `close_notify`.
        """
        if self._closing:
            raise RuntimeError("nothing can be written after close_notify")
        owned = bytes(plaintext)
        if owned:
            self._queue.append(owned)
            self.unsent += len(owned)

    def close_notify(self) -> None:
        """Queue our close_notify behind what was written. The peer may go on sending."""
        self._closing = True

    def take(self, limit: int | None = None) -> bytes:
        """Return the ciphertext to be sent next, ``b""`` if there is none for now.

        Handshake messages and alerts come first and in any case, also after an error.

        Args:
          limit: stop once this many bytes of plaintext are encrypted, or up to a piece of
            64 KiB more; there may be more to take then. None: all.
        """
        if not self.handshake_done or self.error is not None:
            return self._outgoing.read()
        chunks = [self._outgoing.read()]
        stop = None if limit is None else self.plaintext_taken + limit
        while (
            self.unsent and not self._wants_read and (stop is None or self.plaintext_taken < stop)
        ):
            if not self._encrypt_piece():
                break
            chunks.append(self._outgoing.read())
        if self._closing and not self.unsent and not self.close_sent:
            self._shut_down()
        chunks.append(self._outgoing.read())
        return b"".join(chunks)

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _advance_handshake(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self.error = exc
        else:
            self.handshake_done = True

    def _read(self) -> bytes:
        """All the plaintext there is: OpenSSL returns at most one record a call."""
        records = []
        try:
            # Asked only while there is input: the exception of a vain call costs as much
            # as the decryption of a small record.
            while self._incoming.pending or self._ssl.pending():
                record = self._ssl.read(RECORD_SIZE_MAX)
                if not record:
                    self.peer_closed = True
                    break
                records.append(record)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # b"" with our own close_notify sent
            self.peer_closed = True
        except ssl.SSLError as exc:
            self.error = exc
        return records[0] if len(records) == 1 else b"".join(records)

    def _encrypt_piece(self) -> bool:
        """Encrypt one piece of the queue; False if OpenSSL has to read first."""
        self._piece = self._piece or self._next_piece()
        try:
            written = self._ssl.write(self._piece)
        except ssl.SSLWantReadError:
            self._wants_read = True
            return False
        except ssl.SSLError as exc:
            self.error = exc
            return False
        self._piece = self._piece[written:]
        self.unsent -= written
        self.plaintext_taken += written
        return True

    def _next_piece(self) -> bytes | memoryview:
        """A part of one large write, or several small ones that fit into one record."""
        queue = self._queue
        head = queue.popleft()
        if len(head) > PIECE_SIZE_MAX:
            view = memoryview(head)
            queue.appendleft(view[PIECE_SIZE_MAX:])
            return view[:PIECE_SIZE_MAX]
        pieces, size = [head], len(head)
        while queue and size + len(queue[0]) <= RECORD_SIZE_MAX:
            pieces.append(queue.popleft())
            size += len(pieces[-1])
        return head if len(pieces) == 1 else b"".join(pieces)

    def _shut_down(self) -> None:
        # OpenSSL writes our close_notify and then looks for the peer's. It would throw away
        # records that are still unread, but `feed` leaves none.
        self.close_sent = True
        try:
            self._ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self.error = exc
