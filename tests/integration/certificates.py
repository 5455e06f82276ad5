"""Certificates for servers of tests."""

import subprocess
from pathlib import Path


def make_certificate(folder: Path, names: str = "IP:127.0.0.1") -> None:
    """``cert.pem``, which vouches for itself and these names, and its ``key.pem``."""
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        *("-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"),
    ]
    subprocess.run(command, check=True, capture_output=True)
