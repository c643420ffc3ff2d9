"""Certificates for tests, made on the spot by an authority that nobody else trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """Files of a server's certificate: the authority to trust, the chain and the key to serve with."""

    authority: Path
    chain: Path
    key: Path


def make_certificate(folder: Path, name: str = "127.0.0.1") -> Certificate:
    """A certificate for a host, with an authority of its own, written into ``folder``."""
    authority = trustme.CA()
    server = authority.issue_cert(name)
    made = Certificate(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(str(made.authority))
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(str(made.chain), append=number > 0)
    server.private_key_pem.write_to_path(str(made.key))
    return made
