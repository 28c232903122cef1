"""A certificate authority of our own, and contexts that trust it."""

from __future__ import annotations

import ssl

import pytest
import trustme

TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3
NAME = "gain.example.org"

versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


# At import, because server and client ask for it on different threads.
AUTHORITY = trustme.CA()


def server_context(version: ssl.TLSVersion = TLS_1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    AUTHORITY.issue_cert(NAME).configure_cert(context)
    return context


def client_context(*, trusting: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusting:
        AUTHORITY.configure_trust(context)
    return context
