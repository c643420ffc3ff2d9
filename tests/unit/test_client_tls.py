"""A server is believed by its certificate only."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.client.transport import Transport
from kolejka.common.errors import InputError
from tests.neighbours.certificates import Certificate, make_certificate
from tests.unit.client_stub import TOKEN, Stub, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def stub(certificate: Certificate) -> Iterator[Stub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    with serving(Stub(), tls=context) as served:
        yield served


def test_a_certificate_of_ones_own_authority_is_trusted_when_named(stub: Stub, certificate: Certificate) -> None:
    transport = Transport(stub.url, TOKEN, ca=str(certificate.authority))
    assert stub.url.startswith("https://")
    assert transport.request("GET", "/whoami").json()["user"] == "ann"
    transport.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_cure(stub: Stub) -> None:
    with pytest.raises(InputError, match=r"is not trusted .*--ca") as caught:
        Transport(stub.url, TOKEN).request("GET", "/whoami", patience=60.0)
    assert caught.value.field == "server"
    assert "\n" not in str(caught.value)
    assert stub.asked == [], "the token went to nobody"


def test_a_certificate_for_another_name_is_refused(stub: Stub, certificate: Certificate) -> None:
    port = stub.url.rpartition(":")[2]
    with pytest.raises(InputError, match="is not trusted"):
        Transport(f"https://localhost:{port}", TOKEN, ca=str(certificate.authority)).request("GET", "/whoami")
    assert stub.asked == []


def test_tls_to_a_plain_server_says_which_word_is_wrong() -> None:
    with serving(Stub()) as plain, pytest.raises(InputError, match="write http://"):
        Transport(plain.url.replace("http:", "https:"), TOKEN).request("GET", "/whoami", patience=60.0)


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_file_without_certificates_is_named(stub: Stub, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        Transport(stub.url, TOKEN, ca=str(path)).request("GET", "/whoami")
    assert (caught.value.field, str(path) in str(caught.value)) == ("ca", True)
