"""What goes wrong before a run starts, with the remedy."""

from __future__ import annotations


class UringUnavailable(RuntimeError):
    """io_uring was demanded, and cannot be had here.

    Attributes:
      reason: what failed, for example ``"io_uring_setup: operation not permitted"``.
      remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"io_uring is not available: {reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[UringUnavailable], tuple[str, str]]:
        # Exceptions are rebuilt from .args, which here are not the parameters.
        return type(self), (self.reason, self.remedy)


# As users name it, also where it is raised before they have used the name.
UringUnavailable.__module__ = "uring_trio"
