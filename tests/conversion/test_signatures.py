"""A signature says who made a repository; a manifest alone can be written by anybody."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, SIGNATURE, update_manifest
from reasonseg.conversion.publish import publish
from reasonseg.conversion.verify import verify_repository
from tests.support.hub_server import HubServer, allow_only_this_machine


pytest.importorskip("model_signing", reason="Signing needs model-signing and pyopenssl.")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from reasonseg.conversion.signatures import ManifestSigner, check_signature


PEM = serialization.Encoding.PEM


def write_key(folder, name, private=None, encryption=None):
    """A private key and its public half."""
    private = private or ec.generate_private_key(ec.SECP256R1())
    form, encryption = serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(private.private_bytes(PEM, form, encryption))
    public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.key", folder / f"{name}.pub"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return write_key(folder, "mine"), write_key(folder, "others")


@pytest.fixture
def repo(lisa_repo, tmp_path):
    return shutil.copytree(lisa_repo, tmp_path / "repo")


@pytest.fixture
def signed(repo, keys):
    (repo / SIGNATURE).write_bytes(ManifestSigner(keys[0][0]).sign((repo / MANIFEST).read_bytes()))
    return repo


def problems(repo, **options):
    return {problem.file: problem.cause for problem in verify_repository(repo, **options).problems}


def test_the_holder_of_the_key_has_signed(signed, keys, tmp_path):
    (_, mine), (_, others) = keys
    report = verify_repository(signed, key=mine)
    assert report.ok
    assert report.signed
    assert not verify_repository(signed).signed
    assert "not one of this manifest by this key" in problems(signed, key=others)[SIGNATURE]
    moved = (signed / SIGNATURE).rename(tmp_path / "apart.sig")
    assert problems(signed, key=mine, signature=moved) == {}
    assert "no such file" in problems(signed, key=mine)[SIGNATURE]


def test_a_manifest_that_was_written_again_is_found(signed, keys):
    """All sums are right; only the signature is not."""
    state = load_file(signed / "model.safetensors")
    state["seg_projector.linear_1.bias"] += 1
    save_file(state, signed / "model.safetensors", metadata={"format": "pt"})
    update_manifest(signed, ["model.safetensors"])
    assert problems(signed) == {}
    assert list(problems(signed, key=keys[0][1])) == [SIGNATURE]


def test_files_beside_the_manifest_are_found_as_ever(signed, keys):
    (signed / "evil.py").write_text("import os\n")
    (signed / "README.md").write_text("changed")
    assert set(problems(signed, key=keys[0][1])) == {"evil.py", "README.md"}


def test_a_signature_of_other_files_does_not_count(signed, keys, tmp_path):
    """Of the same key, and right: but what it covers is not the manifest."""
    from model_signing import signing

    (tmp_path / "other").mkdir()
    shutil.copy(signed / "README.md", tmp_path / "other")
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0][0])
    config.sign(tmp_path / "other", signed / SIGNATURE)
    assert "covers other files" in problems(signed, key=keys[0][1])[SIGNATURE]


def test_every_byte_of_a_signature_counts_or_says_nothing(signed, keys):
    data, generator = (signed / SIGNATURE).read_bytes(), torch.Generator().manual_seed(0)
    payload = json.loads(data)["dsseEnvelope"]
    for part in (payload["payload"], payload["signatures"][0]["sig"]):
        start = data.index(part.encode())
        for _ in range(15):
            where = start + int(torch.randint(len(part) - 4, (), generator=generator))
            changed = bytearray(data)
            changed[where] = ord("A") if changed[where] != ord("A") else ord("B")
            (signed / SIGNATURE).write_bytes(changed)
            with pytest.raises(ConversionError, match="not one of this manifest by this key"):
                check_signature(signed, keys[0][1])


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b"\xff", b'{"dsseEnvelope": 3}', b" " * (2 << 20)])
def test_what_is_no_signature(signed, keys, content):
    (signed / SIGNATURE).write_bytes(content)
    assert list(problems(signed, key=keys[0][1])) == [SIGNATURE]


def test_keys_that_cannot_be_used(signed, tmp_path):
    key, _ = write_key(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    locked, _ = write_key(tmp_path, "locked", encryption=serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "text.key").write_text("no key")
    for path in (key, locked, tmp_path / "text.key"):
        with pytest.raises(ConversionError, match=r"The key cannot be used.*without a password"):
            ManifestSigner(path)
    with pytest.raises(ConversionError, match="no such file"):
        ManifestSigner(tmp_path / "gone.key")
    with pytest.raises(ConversionError, match="public key cannot be used"):
        check_signature(signed, tmp_path / "text.key")


def test_without_the_package_it_is_said_what_to_install(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConversionError, match="pip install model-signing pyopenssl"):
        check_signature(signed, keys[0][1])
    assert problems(signed) == {}


class TestPublishing:
    @pytest.fixture(autouse=True)
    def hub(self, monkeypatch):
        allow_only_this_machine(monkeypatch)
        with HubServer() as self.hub:
            yield

    def download(self, folder, revision):
        return Path(snapshot_download("me/x", revision=revision, endpoint=self.hub.endpoint, local_dir=folder))

    def publish(self, repo, **options):
        return publish(repo, "me/x", private=True, endpoint=self.hub.endpoint, **options)

    def test_every_revision_carries_a_signature_of_its_own_manifest(self, repo, keys, tmp_path):
        (private, public), (_, others) = keys
        report = self.publish(repo, sign=private)
        assert not (repo / SIGNATURE).exists()
        for revision in (report.revision, "main"):
            found = self.download(tmp_path / revision, revision)
            assert problems(found, key=public) == {}
            assert SIGNATURE in problems(found, key=others)
        assert (tmp_path / "main" / MANIFEST).read_bytes() != (repo / MANIFEST).read_bytes()
        commits = len(self.hub.commits())
        again = self.publish(repo, sign=private)
        assert again.uploads == []
        assert again.revision == report.revision
        assert len(self.hub.commits()) == commits

    def test_another_key_signs_again_and_a_stale_signature_goes(self, repo, keys, tmp_path):
        (first, _), (second, public) = keys
        self.publish(repo, sign=first)
        changes = {change.path: change.kind for change in self.publish(repo, sign=second).changes}
        assert changes[SIGNATURE] == "changed"
        assert problems(self.download(tmp_path / "a", "main"), key=public) == {}
        unchanged = {change.path: change.kind for change in self.publish(repo).changes}
        assert unchanged[SIGNATURE] == "only there"
        (repo / "generation_config.json").write_text("{}\n")
        update_manifest(repo, ["generation_config.json"])
        changes = {change.path: change.kind for change in self.publish(repo).changes}
        assert changes[SIGNATURE] == "removed"

    def test_the_commands(self, repo, keys, tmp_path):
        (private, public), (_, others) = keys
        command = ["publish", repo, "--repo-id", "me/x", "--private", "--hub", self.hub.endpoint]
        done = CliRunner().invoke(app, [*map(str, command), "--sign", str(private)])
        assert done.exit_code == 0, done.output
        found = self.download(tmp_path / "main", "main")
        run = [Path(sys.executable).parent / "reasonseg", "verify", found]
        good = subprocess.run([*run, "--key", public], capture_output=True, text=True, check=False)
        assert good.returncode == 0, good.stderr
        assert "signed by the key" in good.stdout
        bad = CliRunner().invoke(
            app, [*map(str, run[1:]), "--key", str(others), "--signature", str(found / SIGNATURE)]
        )
        assert bad.exit_code == 1
        assert "not one of this manifest by this key" in bad.stdout
        alone = CliRunner().invoke(app, ["verify", str(found), "--signature", str(found / SIGNATURE)])
        assert "--signature needs --key" in alone.stderr

    def test_the_tool_of_openssf_reads_it_and_its_own_is_read(self, signed, keys):
        (private, public), _ = keys
        tool = [Path(sys.executable).parent / "model_signing"]
        check = ["verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", public]
        done = subprocess.run([*tool, *check, "--ignore_unsigned_files"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (signed / SIGNATURE).unlink()
        whole = signed.parent / "whole.sig"
        sign = ["sign", "key", signed, "--signature", whole, "--private_key", private]
        assert subprocess.run([*tool, *sign], capture_output=True, check=False).returncode == 0
        assert problems(signed, key=public, signature=whole) == {}
