"""The servers that many and hostile connections come to: gain, and another one for comparison."""

from __future__ import annotations

from benchmarks.peers import GAIN, UVLOOP_PROTOCOL, callback_servers, find

GAIN_ECHO = find(callback_servers("echo"), GAIN)
UVLOOP_ECHO = find(callback_servers("echo"), UVLOOP_PROTOCOL)
SERVER_PEERS = (GAIN_ECHO, UVLOOP_ECHO)
