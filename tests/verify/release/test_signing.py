"""Keys and signatures: what cannot be a key is named, a password is needed, nothing is replaced."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from convert.errors import InputError, OutputError
from verify.release.signing import (
    PASSWORD,
    SIGNATURE_NAME,
    BadSignature,
    Identity,
    check_signature,
    identity_of,
    make_key,
    public_key_text,
    read_key,
    sign,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "sub").mkdir(parents=True)
    (place / "a.txt").write_text("a")
    (place / "sub" / "b.txt").write_text("b")
    return place


def test_a_key_is_private_and_is_never_replaced(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "k.pem"
    public = make_key(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public.read_bytes() == public_key_text(key)
    kept = key.read_bytes()
    with pytest.raises(OutputError, match="no key was written: File exists"):
        make_key(key)
    assert key.read_bytes() == kept


def test_a_password_is_needed_where_there_is_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "open sesame")
    public = make_key(tmp_path / "k.pem")
    sign(folder, tmp_path / "k.pem")
    check_signature(folder, Identity(key=public))
    for wrong in ("open barley", ""):
        monkeypatch.setenv(PASSWORD, wrong)
        with pytest.raises(InputError, match="not a private key that can be opened"):
            sign(folder, tmp_path / "k.pem")


def test_what_is_no_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no signing key"):
        read_key(tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("not a key")
    with pytest.raises(InputError, match="not a private key that can be opened"):
        read_key(tmp_path / "text.pem")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "rsa.pem").write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(InputError, match="not an elliptic curve key"):
        read_key(tmp_path / "rsa.pem")


def test_the_signature_is_a_statement_that_names_every_file(tmp_path: Path, folder: Path) -> None:
    public = make_key(tmp_path / "k.pem")
    sign(folder, tmp_path / "k.pem")
    bundle = json.loads((folder / SIGNATURE_NAME).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [r["name"] for r in statement["predicate"]["resources"]] == ["a.txt", "sub/b.txt"]
    check_signature(folder, Identity(key=public))
    (folder / "sub" / "c.txt").write_text("c")
    with pytest.raises(BadSignature, match=r"sub/c\.txt"):
        check_signature(folder, Identity(key=public))


def test_a_broken_signature_is_one_line(tmp_path: Path, folder: Path) -> None:
    public = make_key(tmp_path / "k.pem")
    sign(folder, tmp_path / "k.pem")
    path = folder / SIGNATURE_NAME
    whole = path.read_bytes()
    for damaged in (b"", b"{}", whole[: len(whole) // 2], whole.replace(b'"sig":"M', b'"sig":"N')):
        path.write_bytes(damaged)
        with pytest.raises(BadSignature) as error:
            check_signature(folder, Identity(key=public))
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(BadSignature, match="missing"):
        check_signature(folder, Identity(key=public))


def test_a_key_or_an_identity_with_its_issuer(tmp_path: Path) -> None:
    key = make_key(tmp_path / "k.pem")
    assert identity_of(None, None, None) is None
    assert identity_of(key, None, None) == Identity(key=key)
    assert identity_of(None, "me", "them") == Identity(identity="me", issuer="them")
    for wrong in ((None, "me", None), (None, None, "them"), (key, "me", "them")):
        with pytest.raises(InputError, match="both --identity and --issuer"):
            identity_of(*wrong)


def test_an_empty_identity_is_not_anybody_and_a_key_that_is_gone_is_said(tmp_path: Path) -> None:
    for empty in (("", ""), ("me", ""), ("", "them")):  # a variable that a CI job did not set
        with pytest.raises(InputError, match="nobody in particular is named"):
            identity_of(None, *empty)
    with pytest.raises(InputError, match="no public key to check the signature with"):
        identity_of(tmp_path / "gone.pub", None, None)
