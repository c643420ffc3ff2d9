"""Names of container images, as Docker and Podman read them."""

from __future__ import annotations

import pytest

from kolejka.common.errors import InputError
from kolejka.common.image_names import check_image_name

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name",
    [
        "ubuntu", "ubuntu:xenial", "kolejka/busybox:latest", "registry.example.org:5000/course/gcc:12.2-slim",
        "localhost/x", "LOCALHOST:1/x", "[::1]:5000/x/y", "a__b-c.d/e:V1_x", f"debian@{DIGEST}", f"debian:12@{DIGEST}",
        DIGEST, "0123456789ab",
    ],
)  # fmt: skip
def test_names_of_images_are_accepted(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "Ubuntu", "ubuntu:", ":latest", "ubuntu xenial", "ubuntu\n", "../etc", "/ubuntu", "a//b", "a/", "-a",
        "a--", "a..b", "a:b:c", "a@", "a@sha256:12", "http://x/y", "żółw", "a:tág", "--privileged", "a;b", "$(a)",
        "a" * 513,
    ],
)  # fmt: skip
def test_what_no_image_can_be_called_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="registry/path:tag") as caught:
        check_image_name(name)
    assert "\n" not in str(caught.value)
