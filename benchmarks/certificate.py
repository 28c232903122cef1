"""The certificate of this process's TLS servers, made when the first one starts."""

from __future__ import annotations

import functools

from benchmarks.c_programs import build_directory


@functools.cache
def certificate() -> str:
    """The path of a file with the key and the certificate; gone when this process ends."""
    import trustme

    path = build_directory() / "certificate.pem"
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)
