"""The key that signs instance identity documents: made once per region, kept in the state folder."""

import os
import pathlib

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def ensure_key(state: pathlib.Path) -> None:
    """Makes `identity/private.pk8` (PKCS#8 DER) and `identity/public.der` (PKCS#1 RSAPublicKey DER) unless both exist."""
    folder = state / "identity"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = folder / "private.pk8", folder / "public.der"
    if private.exists() and public.exists():
        return
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(private, key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    _write(public, key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1))


def _write(path: pathlib.Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fdatasync(file.fileno())
    fresh.replace(path)
