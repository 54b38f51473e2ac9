"""What this node is let in with: passwords, nkeys, certificates, and what the server permits."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.credentials import CredentialFault, read_access, read_credential, seed_of
from appliance.core.fleet.ed25519 import public_key, sign
from tests.support.links import a_link, running, until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.tls import make_certificate

needs_nats = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
"""The pair in the documentation of NATS (using-nats/developer/connecting/nkey)."""


def secret(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
            "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18"
            "ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_the_vectors_of_the_rfc(seed: str, public: str, message: str, signature: str) -> None:
    """RFC 8032, section 7.1, tests 1 to 3."""
    key = bytes.fromhex(seed)
    assert public_key(key).hex() == public
    assert sign(key, bytes.fromhex(message)).hex() == signature


def test_an_nkey_is_read_as_nats_writes_it(tmp_path: Path) -> None:
    credential = read_credential(Path(secret(tmp_path / "nkey", f"{SEED}\n")))
    assert credential.nkey == PUBLIC
    assert len(base64.b64decode(credential.answer("nonce"))) == 64
    assert SEED not in repr(credential)


@pytest.mark.parametrize(
    "seed", ["", "SU", SEED[:-1], SEED[:20] + "A" + SEED[21:], PUBLIC, "SA" + SEED[2:], "é" * 58, SEED.lower()]
)
def test_what_is_no_seed(seed: str) -> None:
    assert seed_of(seed) is None


def test_a_password_may_have_colons(tmp_path: Path) -> None:
    credential = read_credential(Path(secret(tmp_path / "c", "gitmirror:a:b c\n")))
    assert (credential.user, credential.password) == ("gitmirror", "a:b c")
    assert "a:b c" not in repr(credential)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not one line"),
        ("hunter2", "holds no credential"),
        (":hunter2", "holds no credential"),
        ("user:", "holds no credential"),
        ("a:hunter2\nb:hunter2", "is not one line"),
        ("a:hunter2" * 1000, "is not one line"),
    ],
)
def test_a_file_without_a_credential_is_named_and_its_text_is_not(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "credential"
    with pytest.raises(CredentialFault, match=says) as raised:
        read_credential(Path(secret(path, text)))
    assert str(path) in raised.value.message
    assert "hunter2" not in f"{raised.value.message} {raised.value.hint}"


def test_a_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "credential"
    with pytest.raises(CredentialFault, match=r"open to other users \(mode 0640\)") as raised:
        read_credential(Path(secret(path, "a:b", 0o640)))
    assert raised.value.hint == f"chmod 600 {path}"
    for absent in (tmp_path / "none", tmp_path):
        with pytest.raises(CredentialFault, match=str(absent)):
            read_credential(absent)


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name, says in (("empty.pem", "no certificate is in it"), ("none.pem", "No such file")):
        with pytest.raises(CredentialFault, match=says) as raised:
            read_access(FleetConfig(tls_ca=str(tmp_path / name)))
        assert name in raised.value.message


@pytest.mark.slow
@needs_nats
def test_a_user_with_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refused without and with a wrong one; let in as soon as the file is right, without a restart."""
    file = tmp_path / "credential"
    users = 'authorization { user: "gitmirror", password: "hunter2" }'
    with_password = NatsCluster(tmp_path / "nats", extra=users)
    with_password.servers[0].start()

    async def work() -> None:
        async with running(link := a_link(with_password)):
            await until(lambda: "it demands a credential (set [fleet] credentials_file)" in str(link.trouble))
        secret(file, "gitmirror:hunter3")
        async with running(link := a_link(with_password, credentials_file=str(file))):
            await until(lambda: f"it refused the credential (mend {file}" in str(link.trouble))
            file.chmod(0o644)
            await until(lambda: f"chmod 600 {file}" in str(link.trouble))
            file.chmod(0o600)
            file.write_text("gitmirror:hunter2\n")
            await until(lambda: link.is_up)

    try:
        asyncio.run(work())
    finally:
        with_password.servers[0].stop()
    assert "hunter" not in caplog.text


@pytest.mark.slow
@needs_nats
def test_an_nkey(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path / "nats", extra=f"authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}")
    cluster.servers[0].start()

    async def work() -> None:
        link = a_link(cluster, credentials_file=secret(tmp_path / "nkey", SEED))
        async with running(link):
            await until(lambda: link.is_up)

    try:
        asyncio.run(work())
    finally:
        cluster.servers[0].stop()


@pytest.mark.slow
@needs_nats
def test_what_the_server_does_not_permit_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    permissions = 'permissions: { publish: { allow: ["nothing"] }, subscribe: ["_INBOX.>"] }'
    users = f"authorization {{ users: [ {{ user: a, password: b, {permissions} }} ] }}"
    cluster = NatsCluster(tmp_path / "nats", extra=users)
    cluster.servers[0].start()

    async def work() -> None:
        link = a_link(cluster, credentials_file=secret(tmp_path / "credential", "a:b"))
        async with running(link):
            await until(lambda: "mend the user's permissions" in str(link.trouble))
            assert "$js.api.stream.info.gitmirror-default-turns" in str(link.trouble)

    try:
        asyncio.run(work())
    finally:
        cluster.servers[0].stop()


@pytest.mark.slow
@needs_nats
def test_tls(tmp_path: Path) -> None:
    """With the right certificates; a server with another's, or without TLS, never gets the credential."""
    good, other = make_certificate(tmp_path, "good"), make_certificate(tmp_path, "other")
    tls = f'tls {{ cert_file: "{good.cert}", key_file: "{good.key}" }}'
    cluster, plain = NatsCluster(tmp_path / "tls", extra=tls), NatsCluster(tmp_path / "plain")
    cluster.servers[0].start()
    plain.servers[0].start()

    async def work() -> None:
        for url in (cluster.urls[0], cluster.urls[0].replace("nats:", "tls:")):
            async with running(link := a_link(cluster, servers=(url,), tls_ca=str(good.cert))):
                await until(lambda link=link: link.is_up)  # type: ignore[misc]
            async with running(link := a_link(cluster, servers=(url,), tls_ca=str(other.cert))):
                await until(lambda link=link: "its certificate is refused" in str(link.trouble))  # type: ignore[misc]
        for settings in ({"tls_ca": str(good.cert)}, {"servers": (plain.urls[0].replace("nats:", "tls:"),)}):
            async with running(link := a_link(plain, **settings)):
                await until(lambda link=link: "it offers no TLS" in str(link.trouble))  # type: ignore[misc]

    try:
        asyncio.run(work())
    finally:
        cluster.servers[0].stop()
        plain.servers[0].stop()
