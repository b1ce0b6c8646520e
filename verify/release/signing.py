"""One signature over a folder, by OpenSSF model-signing: its bundle is an in-toto statement.

In: a folder and a private key (EC, PEM), or the identity of a CI job (`keyless`, Sigstore, which
needs the network). Out: `model.sig`, which names every file of the folder with its sha256; the
stock tool verifies it too: `model_signing verify key FOLDER --signature FOLDER/model.sig
--public_key KEY.pub`. Checked against a key that one trusts it says who released; against the copy
of the public key that travels with the release it says only that nothing changed since.

Subfolders that have a signature of their own are left out of it, and named in it as left out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError, OutputError, UnsupportedError

SIGNATURE_NAME = "model.sig"
PUBLIC_KEY_NAME = "model.sig.pub"
PASSWORD = "HERMES_QUANT_SIGNING_PASSWORD"  # noqa: S105  the name of a variable


@dataclass(frozen=True, slots=True)
class Identity:
    """Who must have signed: a public key, or a Sigstore identity and its issuer."""

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None


def identity_of(key: Path | None, identity: str | None, issuer: str | None) -> Identity | None:
    """Who must have signed, as given on the command line; None for anybody."""
    if (identity is None) != (issuer is None) or (key and identity):
        raise InputError("give --key FILE, or both --identity and --issuer")
    if identity is not None and not (identity and issuer):
        raise InputError("--identity and --issuer: one is empty; nobody in particular is named")
    if key is not None and not key.is_file():
        raise InputError(f"{key}: no public key to check the signature with")
    return Identity(key, identity, issuer) if key or identity else None


class BadSignature(InputError):  # noqa: N818  a finding first, an error where it stops something
    """A signature that does not hold; the message says why."""


def make_key(path: Path) -> Path:
    """Write a new private key (P-256, mode 600) to `path` and the public one beside it."""
    serialization, ec = _cryptography()
    public = path.with_name(f"{path.name}.pub")
    key = ec.generate_private_key(ec.SECP256R1())
    password = _password()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(private)
        public.write_bytes(_public_bytes(key))
    except OSError as error:
        raise OutputError(f"{path}: no key was written: {error.strerror}") from error
    return public


def read_key(path: Path) -> Any:
    """The private key at `path`; InputError where it is none, or needs another password."""
    serialization, ec = _cryptography()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), _password())
    except OSError as error:
        raise InputError(f"{path}: no signing key: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a private key that can be opened (PEM; ${PASSWORD} holds its password):"
            f" {str(error)[:120]}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: not an elliptic curve key; make one with `release key FILE`")
    return key


def public_key_text(path: Path) -> bytes:
    """The public half of the private key at `path`, as PEM."""
    return _public_bytes(read_key(path))


def sign(folder: Path, key: Path | None, unsigned: Sequence[str] = ()) -> None:
    """Write the signature of `folder`; without a `key`, by the ambient identity of a CI job."""
    signing, hashing = _module("model_signing.signing"), _module("model_signing.hashing")
    ignored = [SIGNATURE_NAME, *unsigned]
    config = signing.Config().set_hashing_config(
        hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    )
    if key is not None:
        read_key(key)
        config.use_elliptic_key_signer(private_key=key, password=_password())
    else:
        config.use_sigstore_signer(use_ambient_credentials=True)
    try:
        config.sign(folder, folder / SIGNATURE_NAME)
    except Exception as error:
        if key is not None:
            raise
        reason = " ".join(str(error).split())[:200]  # sigstore raises many kinds, network and all
        raise InputError(f"keyless signing failed, which works in CI only: {reason}") from error


def check_signature(folder: Path, by: Identity, unsigned: Sequence[str] = ()) -> None:
    """Raise BadSignature unless `folder` is what was signed, by whom it must be."""
    verifying, hashing = _module("model_signing.verifying"), _module("model_signing.hashing")
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise BadSignature(f"{SIGNATURE_NAME}: missing")
    config = verifying.Config().set_hashing_config(
        hashing.Config().set_ignored_paths(
            paths=[SIGNATURE_NAME, *unsigned], ignore_git_paths=False
        )
    )
    try:
        if by.identity:
            config.use_sigstore_verifier(identity=by.identity, oidc_issuer=by.issuer or "")
        else:
            config.use_elliptic_key_verifier(public_key=by.key or folder / PUBLIC_KEY_NAME)
        config.verify(folder, path)
    except Exception as error:  # the library raises its own, protobuf's and cryptography's errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadSignature(f"{SIGNATURE_NAME}: does not hold: {reason}") from error


def _public_bytes(key: Any) -> bytes:
    serialization, _ = _cryptography()
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def _password() -> bytes | None:
    return os.environ.get(PASSWORD, "").encode() or None


def _cryptography() -> tuple[Any, Any]:
    """The modules `serialization` and `ec` of cryptography, which model-signing needs too."""
    place = "cryptography.hazmat.primitives"
    return _module(f"{place}.serialization"), _module(f"{place}.asymmetric.ec")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; a release needs it: pip install"
            " 'hermes-quant[release]'"
        ) from error
