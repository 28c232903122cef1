"""All kinds of places by their names."""

from __future__ import annotations

from typing import Any

from peers.connects import Connects
from peers.listeners import Listener
from peers.messages import Messages
from peers.streams import Stream

KINDS: dict[str, Any] = {
    kind: place for place in (Stream, Messages, Listener, Connects) for kind in place.KINDS
}
