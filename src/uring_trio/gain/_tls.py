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

Each direction is a table:

    HANDSHAKE --done--> OPEN --end--> ENDED          the peer's, until its close_notify
        +--give up--> GIVEN_UP                       we close, and nothing waits for it
    WRITING --close--> CLOSING --sent--> SENT        ours, until our close_notify
        | stall, feed     | stall, feed
    STALLED --close--> CLOSING_STALLED               OpenSSL first wants to read

`Secure` stands between a connection and the layer, and counts in plaintext. How much of
that the kernel has taken is known when a piece of ciphertext has been sent whole, and then
the plaintext in it counts as written. What was written before ``start_tls`` leaves first and
in clear, and counts as it goes. It knows nothing of connections: it is given bytes and
returns bytes, and what is to become of an error is for `_connection` to say.
"""

from __future__ import annotations

import enum
import ssl
from collections import deque

from uring_trio.gain._halves import Table, quick, step

# The largest plaintext of a TLS record (RFC 8446, 5.1): small writes are joined up to it.
RECORD_SIZE_MAX = 16 * 1024
# What OpenSSL is given at once: four records save three of four calls, and more saves little.
PIECE_SIZE_MAX = 4 * RECORD_SIZE_MAX
# Bytes of plaintext that are encrypted for one send, or up to 64 KiB more (see `TLSLayer`).
ENCRYPT_SIZE = 64 << 10


@quick
class Peer(enum.IntEnum):
    """How far the peer is."""

    HANDSHAKE = 0
    OPEN = 1
    ENDED = 2  # its close_notify has come
    GIVEN_UP = 3  # there is no use in the handshake any more


@quick
class PeerEvent(enum.IntEnum):
    """What moves that on."""

    DONE = 0
    END = 1
    GIVE_UP = 2


@quick
class Ours(enum.IntEnum):
    """How far our own direction is."""

    WRITING = 0
    STALLED = 1  # OpenSSL has to read before it writes
    CLOSING = 2  # a close_notify follows what was written
    CLOSING_STALLED = 3
    SENT = 4  # it was taken


@quick
class OurEvent(enum.IntEnum):
    """What moves that on."""

    STALL = 0
    FEED = 1  # something was read
    CLOSE = 2
    SEND = 3


_P, _O = Peer, Ours
NEXT_PEER: Table[Peer] = {
    #               DONE      END        GIVE_UP
    _P.HANDSHAKE: (_P.OPEN, None, _P.GIVEN_UP),
    _P.OPEN: (None, _P.ENDED, _P.OPEN),
    _P.ENDED: (None, None, _P.ENDED),
    _P.GIVEN_UP: (None, None, _P.GIVEN_UP),
}
NEXT_OURS: Table[Ours] = {
    #                     STALL               FEED        CLOSE               SEND
    _O.WRITING: (_O.STALLED, _O.WRITING, _O.CLOSING, None),
    _O.STALLED: (None, _O.WRITING, _O.CLOSING_STALLED, None),
    _O.CLOSING: (_O.CLOSING_STALLED, _O.CLOSING, _O.CLOSING, _O.SENT),
    _O.CLOSING_STALLED: (None, _O.CLOSING, _O.CLOSING_STALLED, None),
    _O.SENT: (None, _O.SENT, _O.SENT, None),
}


class TLSLayer:
    """One end of a TLS connection whose bytes somebody else carries.

    Not for use by two threads at once.

    Args:
      context: certificates and policy.
      server_side: whether this is the server's end.
      server_hostname: for a client: the name to ask for and to check.

    Attributes:
      peer: `Peer`.
      ours: `Ours`.
      error: what ended the layer; raised by the next feed.
      unsent: bytes of plaintext that were written and not yet taken.
      plaintext_taken: bytes of plaintext in all the ciphertext taken so far.

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
        self.peer = Peer.HANDSHAKE
        self.ours = Ours.WRITING
        self.error: ssl.SSLError | None = None
        self.unsent = 0
        self.plaintext_taken = 0

    @property
    def handshake_done(self) -> bool:
        """Whether there is a TLS connection, or was one."""
        return self.peer in (Peer.OPEN, Peer.ENDED)

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's close_notify has come."""
        return self.peer is Peer.ENDED

    @property
    def close_sent(self) -> bool:
        """Whether ours has been taken."""
        return self.ours is Ours.SENT

    @property
    def pending(self) -> bool:
        """Whether `take` has anything to return."""
        if self._outgoing.pending:
            return True
        if not self.handshake_done or self.error is not None:
            return False
        return self.ours is Ours.CLOSING or (self.ours is Ours.WRITING and self.unsent > 0)

    def give_up_handshake(self) -> None:
        """Nothing waits for it any more."""
        self.peer = step(NEXT_PEER, self.peer, PeerEvent.GIVE_UP)

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
        self.ours = step(NEXT_OURS, self.ours, OurEvent.FEED)
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
        if self.ours >= Ours.CLOSING:
            raise RuntimeError("nothing can be written after close_notify")
        owned = bytes(plaintext)
        if owned:
            self._queue.append(owned)
            self.unsent += len(owned)

    def close_notify(self) -> None:
        """Queue our close_notify behind what was written. The peer may go on sending."""
        self.ours = step(NEXT_OURS, self.ours, OurEvent.CLOSE)

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
            self.unsent
            and self.ours in (Ours.WRITING, Ours.CLOSING)
            and (stop is None or self.plaintext_taken < stop)
        ):
            if not self._encrypt_piece():
                break
            chunks.append(self._outgoing.read())
        if self.ours is Ours.CLOSING and not self.unsent:
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
            self.peer = step(NEXT_PEER, self.peer, PeerEvent.DONE)

    def _read(self) -> bytes:
        """All the plaintext there is: OpenSSL returns at most one record a call."""
        records = []
        try:
            # Asked only while there is input: the exception of a vain call costs as much
            # as the decryption of a small record.
            while self._incoming.pending or self._ssl.pending():
                record = self._ssl.read(RECORD_SIZE_MAX)
                if not record:
                    self._end()
                    break
                records.append(record)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # b"" with our own close_notify sent
            self._end()
        except ssl.SSLError as exc:
            self.error = exc
        return records[0] if len(records) == 1 else b"".join(records)

    def _end(self) -> None:
        self.peer = step(NEXT_PEER, self.peer, PeerEvent.END)

    def _encrypt_piece(self) -> bool:
        """Encrypt one piece of the queue; False if OpenSSL has to read first."""
        self._piece = self._piece or self._next_piece()
        try:
            written = self._ssl.write(self._piece)
        except ssl.SSLWantReadError:
            self.ours = step(NEXT_OURS, self.ours, OurEvent.STALL)
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
        self.ours = step(NEXT_OURS, self.ours, OurEvent.SEND)
        try:
            self._ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self.error = exc


class Secure:
    """The TLS layer of one connection.

    Args:
      context: certificates and policy.

    Attributes:
      truncated: the transport ended without close_notify, after the handshake.

    Raises:
      ssl.SSLError: the context is not one for servers.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._layer = TLSLayer(context)
        self.truncated: ssl.SSLError | None = None
        self._reported = 0  # bytes of plaintext that count as written
        # `plaintext_taken` behind the ciphertext in flight; None: what is in flight is clear text.
        self._in_flight_end: int | None = 0
        self._clear: list[bytes] = []  # written before start_tls(): leaves as it is

    def take_over(self, clear: list[bytes], *, in_flight: bool) -> None:
        """Begin in the middle of a connection.

        Args:
          clear: written until now, and not sent.
          in_flight: a send of more is in flight.
        """
        self._clear = clear
        self._in_flight_end = None if in_flight else 0

    @property
    def handshaking(self) -> bool:
        """Whether the handshake is to be done, and needs input whatever the user needs."""
        return self._layer.peer is Peer.HANDSHAKE

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
        if self._clear:
            self._in_flight_end = None
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
        if self._in_flight_end is None:
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
        if not unsent:
            self._layer.give_up_handshake()
        self.encrypt(written)
        self._layer.close_notify()
