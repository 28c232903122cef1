"""Sockets that trio made before there was a ring: systemd's, a pre-fork server's, globals.

They are objects of trio's own class, and a run on the ring would not know them. So as long
as anybody uses the ring (see `_hooks`), the methods of trio's class that do I/O look at the
run: on a ring, an object of exactly that class becomes a `UringSocket`, for good, and its
call goes on there. Both classes have the same layout, and on epoll `UringSocket` does what
trio's class does, so it does not matter who else has the object, in which run or thread; a
call that is under way on it elsewhere ends as it began.

Classes that users derive from trio's are theirs: their calls go trio's way, and are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection

from uring_trio._io_manager import UringIOManager
from uring_trio._sockets import UringSocket
from uring_trio._trio_private import manager_of, run_context, stock_socket_type

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS = (
    *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("send", "sendto", "sendmsg", "accept", "connect"),
)
# A task may wait for the readiness of a socket that has had no operation yet.
ENDINGS = ("close", "__exit__")


def _belongs_on_ring(sock: Any) -> bool:
    """Whether a call is for `UringSocket` to do; then *sock* is one."""
    if isinstance(sock, UringSocket):
        return False  # comes from there: trio's own way
    try:
        manager = manager_of(run_context.task)
    except AttributeError:
        return False
    if not isinstance(manager, UringIOManager):
        return False
    if type(sock) is not stock_socket_type:
        manager.count_stock_call("subclass")
        return False
    sock.__class__ = UringSocket
    return True


def _operation(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @enable_ki_protection
    async def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _belongs_on_ring(self):
            return await ours(self, *args, **kwargs)
        return await original(self, *args, **kwargs)

    return method


def _ending(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if type(self) is not stock_socket_type:
            return original(self, *args, **kwargs)
        self.__class__ = UringSocket
        return ours(self, *args, **kwargs)

    return method


def _replacement(name: str) -> Callable[..., Any]:
    make = _operation if name in OPERATIONS else _ending
    original = _originals[name]
    method = make(original, getattr(UringSocket, name))
    method.__name__ = name
    method.__qualname__ = original.__qualname__
    method.__doc__ = original.__doc__
    return method


_originals: dict[str, Callable[..., Any]] = {
    name: getattr(stock_socket_type, name) for name in (*OPERATIONS, *ENDINGS)
}

#: By class: the methods to be put in place of trio's, and trio's, to be put back.
REPLACEMENTS: dict[type, dict[str, Callable[..., Any]]] = {
    stock_socket_type: {name: _replacement(name) for name in _originals}
}
ORIGINALS: dict[type, dict[str, Callable[..., Any]]] = {stock_socket_type: _originals}
