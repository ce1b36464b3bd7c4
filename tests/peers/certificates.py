"""Certificates for servers on loopback, made by openssl."""

import ssl
import subprocess
from pathlib import Path


class Certificates:
    """An authority and a certificate for 127.0.0.1, made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        ca_key, request, extensions = (str(folder / name) for name in ("ca.key", "request.pem", "extensions"))
        Path(extensions).write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        for command in (
            ["req", "-x509", *new, "-keyout", ca_key, "-out", self.ca, "-days", "2", "-subj", "/CN=authority"],
            ["req", *new, "-keyout", self.key, "-out", request, "-subj", "/CN=server"],
            [
                "x509",
                "-req",
                "-in",
                request,
                "-CA",
                self.ca,
                "-CAkey",
                ca_key,
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                extensions,
                "-out",
                self.cert,
            ],
        ):
            subprocess.run(["openssl", *command], check=True, capture_output=True)  # noqa: S607 - the system's

    def context(self, *, ask_client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
        return context
