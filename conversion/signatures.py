"""Who made a repository: an OpenSSF signature of its manifest, which in turn holds the sha256 of every file.

A manifest alone proves that the files belong together; whoever changes them can write a new one. Only the holder of
the private key can sign it.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from .errors import ConversionError, refusing
from .file_type import check_regular_file
from .manifest import MANIFEST, SIGNATURE


MAX_SIGNATURE_BYTES = 1 << 20
_INSTALL = "Install what signs and checks signatures: pip install model-signing pyopenssl"
_MAKE_KEY = (
    "Pass a private key on the curve P-256, P-384 or P-521 without a password, as "
    "`openssl ecparam -genkey -name prime256v1 -noout -out KEY` makes one."
)


class ManifestSigner:
    """Signs manifests with a key file.

    Args:
        key (`Path`): The private key, in PEM.

    Raises:
        ConversionError: It cannot be used, or the package that signs is not installed.
    """

    def __init__(self, key: Path):
        check_regular_file(key)
        self._key = key
        signing, _ = _package()
        with refusing("The key cannot be used", path=key, next_step=_MAKE_KEY):
            self._config = signing.Config().use_elliptic_key_signer(private_key=key)
            self._public = _public_key(key)

    def sign(self, manifest: bytes) -> bytes:
        """The signature of a manifest's bytes, another one each time."""
        with tempfile.TemporaryDirectory() as scratch:
            folder, signature = _alone(manifest, Path(scratch)), Path(scratch) / "signature"
            with refusing("The manifest cannot be signed", path=self._key, next_step=_MAKE_KEY):
                self._config.sign(folder, signature)
            return signature.read_bytes()

    def has_signed(self, manifest: bytes, signature: bytes) -> bool:
        """Whether a signature is this key's, of these bytes."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = _alone(manifest, Path(scratch))
            public, written = Path(scratch) / "key", Path(scratch) / "signature"
            public.write_bytes(self._public)
            written.write_bytes(signature)
            try:
                check_signature(folder, public, written)
            except ConversionError:
                return False
        return True


def check_signature(repo: Path, key: Path, signature: Path | None = None) -> None:
    """Check that the holder of a key has signed the manifest of a repository; its files are left to the verification.

    Args:
        repo (`Path`): The repository.
        key (`Path`): The public key, in PEM.
        signature (`Path`, *optional*): The signature; by default the repository's own. One of the whole folder, as the
            command `model_signing` makes it, will do as well.

    Raises:
        ConversionError: There is no such signature, or it is another key's or another manifest's.
    """
    signature = repo / SIGNATURE if signature is None else signature
    for path in (key, signature, repo / MANIFEST):
        check_regular_file(path)
    if signature.stat().st_size > MAX_SIGNATURE_BYTES:
        raise ConversionError("The file is too large to be a signature.", path=signature)
    _, verifying = _package()
    with refusing("The public key cannot be used", path=key, next_step="Pass the signer's public key in PEM."):
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    with refusing(
        "The signature is not one of this manifest by this key",
        path=signature,
        next_step="Get repository, signature and key again from where you trust them to be.",
    ):
        # The files that only the manifest lists are compared with it by whoever asks for this check.
        config.set_ignore_unsigned_files(True).verify(repo, signature)
        if MANIFEST not in _signed_names(signature):
            raise ConversionError(f"The signature covers other files, and not {MANIFEST}.")


def _signed_names(signature: Path) -> list[str]:
    """Names of the files that a signature, which was found to be right, covers."""
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    statement: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return [resource["name"] for resource in statement["predicate"]["resources"]]


def _alone(manifest: bytes, scratch: Path) -> Path:
    """A folder with nothing but a manifest."""
    folder = scratch / "repository"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(manifest)
    return folder


def _public_key(key: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    public = serialization.load_pem_private_key(key.read_bytes(), None).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _package() -> tuple[Any, Any]:
    """The modules that sign and that check.

    Raises:
        ConversionError: They are not installed.
    """
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise ConversionError(f"model-signing cannot be imported ({error}).", next_step=_INSTALL) from error
    return signing, verifying
