"""What `encryption` needs of cryptography, by the library of that name.

A module of its own, imported where it is first used: loading the library takes 7 MB, which only those who encrypt pay.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEY_BYTES = 32
POINT_BYTES = 65
"""An uncompressed point of the curve: `04`, X, Y."""


class KeyPair:
    """One side of a key exchange on P-256.

    Args:
        scalar: the private half; a random one if not given.
    """

    def __init__(self, scalar: int | None = None) -> None:
        curve = ec.SECP256R1()
        self._key = ec.generate_private_key(curve) if scalar is None else ec.derive_private_key(scalar, curve)

    @property
    def public_point(self) -> bytes:
        """The public half, as the wire has it."""
        return self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def shared_secret(self, point: bytes) -> bytes:
        """Return the X coordinate that both sides come to; raises ValueError if `point` is not on the curve."""
        if len(point) != POINT_BYTES:
            raise ValueError(f"{len(point)} bytes")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        return self._key.exchange(ec.ECDH(), peer)


def derive_key(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return one direction's key; the salt is the session's id."""
    return HKDF(hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


class Cipher:
    """AES-256-GCM under one key, with nothing authenticated beside the text."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, nonce: bytes, text: bytes) -> bytes:
        """Return the ciphertext with its tag at the end."""
        return self._cipher.encrypt(nonce, text, None)

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        """Return the text; raises ValueError if it was sealed under another key, or changed."""
        try:
            return self._cipher.decrypt(nonce, sealed, None)
        except InvalidTag as error:
            raise ValueError("the tag does not fit") from error
