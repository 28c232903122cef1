"""One authority and its contexts, made before anything is forked.

`gain_tools` has some, too, and more than is public; this serves with another release as well.
"""

from __future__ import annotations

import ssl

import trustme

NAME = "gain.example.org"

_authority = trustme.CA()

SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
_authority.issue_cert(NAME).configure_cert(SERVER)
CLIENT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_authority.configure_trust(CLIENT)
