"""A server on loopback that speaks S3, and buckets in it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path

from kolejka.common.settings import ServerSettings

KEY, SECRET = "test-key", "test-secret-word"


class S3:
    """moto's server in a thread."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._numbers = itertools.count()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"

    def bucket(self) -> str:
        """A new bucket, as the setting ``server.blobs`` names it."""
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        name = f"kolejka-{next(self._numbers)}"
        client.create_bucket(Bucket=name)
        return f"s3://{name}/some/prefix"

    def settings(self, data: Path, **more: object) -> ServerSettings:
        """Settings of a server whose blobs lie in a new bucket."""
        words = {"blobs": self.bucket(), "s3_endpoint": self.url, "s3_key": KEY, "s3_secret": SECRET, **more}
        return ServerSettings(data=data, **words)  # type: ignore[arg-type]

    def environment(self) -> Mapping[str, str]:
        """The same as variables."""
        return {
            "KOLEJKA_SERVER_BLOBS": self.bucket(), "KOLEJKA_SERVER_S3_ENDPOINT": self.url,
            "KOLEJKA_SERVER_S3_KEY": KEY, "KOLEJKA_SERVER_S3_SECRET": SECRET,
        }  # fmt: skip

    def stop(self) -> None:
        """Stop it."""
        self._server.stop()
