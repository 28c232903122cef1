"""Endpoints: the open files that a run uses, each with its two lines.

Two trio sockets around one socket of the standard library share one, so that their operations
stand in one line. A file that was closed may have operations that have not ended, while its
number is another's already; so a number may have several endpoints.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from uring_trio import _hot_parts
from uring_trio._hot_parts import EndpointFields
from uring_trio._lines import Receiver, Sender

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from uring_trio._io_manager import UringIOManager


class Endpoint(EndpointFields):
    """An open file in one run: its two lines.

    Attributes:
      manager: the run's.
      owner: who holds the file.
      fd: its number, while it is open.
      can_be_tried: whether a call may be made on it that must not wait: one of the standard
        library's, or on the ring. See `_streams` and `Accept`.
    """

    __slots__ = ("__weakref__", "can_be_tried", "fd")

    manager: UringIOManager
    owner: Any
    receiver: Receiver
    sender: Sender

    def __init__(
        self,
        manager: UringIOManager,
        owner: Any,
        fileno: Callable[[], int],
        *,
        is_socket: bool,
    ) -> None:
        self.manager = manager
        self.owner = owner
        self.fd = fileno()
        self.can_be_tried = True
        slots, backlog = manager.slots, manager.backlog
        self.receiver = Receiver(slots, backlog, fileno, is_socket=is_socket)
        self.sender = Sender(slots, backlog, fileno, is_socket=is_socket)
        if is_socket:
            self.receiver.ask_for_low_water()

    def open_accepted(self, owner: socket.socket) -> Endpoint:
        """The endpoint of a connection that was accepted on this one, a listener's."""
        endpoint = self.manager.open_endpoint(owner, owner.fileno, is_socket=True)
        endpoint.receiver.inherit_low_water(self.receiver)
        return endpoint

    def try_no_more(self) -> None:
        """It was seen that a call may wait, or cannot be told not to."""
        self.can_be_tried = False

    def is_in_use(self) -> bool:
        """Whether its file is open, as far as its owner knows, or has operations."""
        return self.receiver.fileno() == self.fd or self.is_busy()

    def is_busy(self) -> bool:
        """Whether it has operations."""
        return self.receiver.is_busy() or self.sender.is_busy()

    def end(self, exception: Exception, wake: list[tuple[Any, Exception]], *, detach: bool) -> bool:
        """End its operations; as `Line.end`, which see."""
        in_kernel = self.receiver.end(exception, wake, detach)
        return self.sender.end(exception, wake, detach) or in_kernel

    def __del__(self) -> None:
        # A spare operation and its line hold each other, and with them the file. A socket
        # that nobody closed is closed when it is dropped, as on stock, not at some later
        # collection.
        self.receiver.break_cycles()
        self.sender.break_cycles()


class Endpoints:
    """Those of one run, by number; asked from any thread, changed in the run's own."""

    def __init__(self) -> None:
        self._by_fd: dict[int, list[weakref.ref[Endpoint]]] = {}

    def open(
        self, manager: UringIOManager, owner: Any, fileno: Callable[[], int], *, is_socket: bool
    ) -> Endpoint:
        """The endpoint of the open file that *owner* holds; *fileno* gives -1 once closed."""
        fd = fileno()
        alive = []
        for reference in self._by_fd.get(fd, ()):
            endpoint = reference()
            if endpoint is None:
                continue
            if endpoint.owner is owner:
                return endpoint
            if endpoint.is_in_use():
                alive.append(reference)
        endpoint = Endpoint(manager, owner, fileno, is_socket=is_socket)
        self._by_fd[fd] = [*alive, weakref.ref(endpoint)]
        return endpoint

    def on(self, fd: int) -> list[Endpoint]:
        """Those of a number."""
        references = self._by_fd.get(fd)
        if references is None:
            return []
        return [endpoint for reference in references if (endpoint := reference()) is not None]

    def __iter__(self) -> Iterator[Endpoint]:
        """All of them."""
        for fd in list(self._by_fd):
            yield from self.on(fd)

    def forget_number(self, endpoint: Endpoint) -> None:
        """Its number may be another file's from now on, whose closing is none of its business."""
        references = self._by_fd.get(endpoint.fd, [])
        self._by_fd[endpoint.fd] = [r for r in references if r() is not endpoint]


if _hot_parts.hot is not None:
    _hot_parts.hot.know(Endpoint=Endpoint)
