"""Publishing a repository on the Hub: allowed by its licences, verified, resumable, pinned to a commit."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever client this release of huggingface_hub is built on
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from .card import card_values, known_bases, pin_card, publishing_permission, read_card, read_card_values
from .errors import ConversionError
from .hub_files import HANDLER, REQUIREMENTS, endpoint_files, is_own_handler, is_own_requirements, space_files
from .manifest import MANIFEST, SIGNATURE, file_sha256, is_trained, read_manifest, repository_files, update_manifest
from .progress import ProgressCallback
from .signatures import MAX_SIGNATURE_BYTES, ManifestSigner
from .sources import read_json
from .trained import Base, check_trained, export_trained, is_trained_export
from .verify import system_of, verify_repository


CARD = "README.md"
NEW, CHANGED, UNCHANGED, REMOVED, KEPT = "new", "changed", "unchanged", "removed", "only there"
_MAIN = "main"
# A loader that finds weights of an earlier upload beside the new ones could take those.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
_MAX_PROBLEMS = 3
_MODEL, _SPACE = "model", "space"
# Stands for the commit while a dry run cannot know it.
_NO_COMMIT = "0" * 40
_PASS_A_REPOSITORY = "Pass the folder that `reasonseg convert` or `reasonseg train` has written."


@dataclass(frozen=True)
class Change:
    """What publishing does to one file of the remote repository.

    Args:
        path (`str`): Path in the repository.
        kind (`str`): `"new"`, `"changed"`, `"unchanged"`, `"removed"` or `"only there"`.
        size (`int`): Bytes, of the local file where there is one.
    """

    path: str
    kind: str
    size: int


@dataclass(frozen=True)
class SpaceReport:
    """What was published as a Space.

    Args:
        repo_id (`str`): `"organisation/name"`.
        url (`str`): Its address; empty for a dry run on a Space that does not exist.
        private (`bool`): Whether only its owner sees it, as the checkpoint.
        changes (`list[Change]`): Every file.
    """

    repo_id: str
    url: str
    private: bool
    changes: list[Change]


@dataclass(frozen=True)
class PublishReport:
    """What was published.

    Args:
        repo_id (`str`): `"organisation/name"`.
        url (`str`): Address of the pinned revision; empty for a dry run on a repository that does not exist.
        revision (`str`, *optional*): The commit to use: complete, and never changed again. `None` for a dry run with
            something to upload.
        changes (`list[Change]`): Every file.
        space (`SpaceReport`, *optional*): The Space that runs it, where one was asked for.
    """

    repo_id: str
    url: str
    revision: str | None
    changes: list[Change]
    space: SpaceReport | None = None

    @property
    def uploads(self) -> list[Change]:
        return [change for change in self.changes if change.kind in (NEW, CHANGED)]


def check_licence(folder: Path, card: str | None, private: bool) -> None:
    """Refuse to publish what the licence chain of the card's values forbids.

    Args:
        folder (`Path`): The repository, with full weights.
        card (`str`, *optional*): Name or file of the card's values; by default the README.md says which.
        private (`bool`): Whether only its owner will see it.

    Raises:
        ConversionError: Full weights may not be published; says why and what may be done instead.
    """
    described = card or card_values(read_card(folder))
    values = read_card_values(described) if described else {}
    permission = publishing_permission(values)
    if permission.allowed or private:
        return
    what = described if isinstance(described, str) else values.get("title", "This repository")
    raise ConversionError(
        f"{what} may not be published with its full weights: {permission.reason}.",
        path=folder,
        next_step="Pass --private for a repository that only you can read, or --trained-only with --base to publish "
        "what was trained, which others load on top of the base they have."
        + (_how_to_state_it(folder) if values.get("base", "unknown") == "unknown" else ""),
    )


def _how_to_state_it(folder: Path) -> str:
    """What to write, and where, for a base that is not known."""
    try:
        system = system_of(read_json(folder / "config.json"), folder)
    except ConversionError:
        system = "lisa"
    bases = ", ".join(base for base in known_bases() if base != "unknown")
    return (
        " If its base allows more, name the checkpoint with --card, or write into a file, such as my-model.yaml, the "
        f"two lines `system: {system}` and `base: llama-2` (or another of {bases}; the README's section Publishing "
        "explains them) and pass --card my-model.yaml."
    )


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    card: str | None = None,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    on_changes: Callable[[list[Change]], None] | None = None,
    progress: ProgressCallback | None = None,
    verify: Callable[[Path], None] | None = None,
    sign: str | Path | None = None,
    handler: bool = False,
    space: str | None = None,
) -> PublishReport:
    """Verify a repository and upload what the remote one lacks.

    All files go up in one commit, large ones first and one by one: after an interruption, the same call uploads only
    those that are missing. A second commit enters the first one's hash into the card, as the revision to use.

    Args:
        folder (`str` or `Path`): A converted repository, or an export of trained tensors, which may always be public.
        repo_id (`str`): `"organisation/name"`; made if it does not exist.
        private (`bool`, *optional*, defaults to `False`): Make it private; an existing public one is refused where
            the licences ask for a private one.
        revision (`str`, *optional*): Branch to publish on, made if it does not exist; `"main"` by default.
        card (`str`, *optional*): See `check_licence`.
        dry_run (`bool`, *optional*, defaults to `False`): Verify and compare, but change nothing.
        endpoint (`str`, *optional*): Another Hub.
        token (`str`, *optional*): Access token; by default the one of `hf auth login`.
        on_changes (`Callable[[list[Change]], None]`, *optional*): Told what will be done, before anything is uploaded.
        progress (`ProgressCallback`, *optional*): Told about bytes read and uploaded.
        verify (`Callable[[Path], None]`, *optional*): Raises when the folder is damaged; by default the manifest,
            weights and code are checked.
        sign (`str` or `Path`, *optional*): A private key to sign the manifest with; the signature is published beside
            it.
        handler (`bool`, *optional*, defaults to `False`): Add what an Inference Endpoint runs: `handler.py` and
            `requirements.txt`, entered into the published manifest. The folder itself is not touched. Without it,
            those of an earlier upload are removed.
        space (`str`, *optional*): `"organisation/name"` of a Space to make or renew, which runs the published commit;
            private where the checkpoint is.

    Raises:
        ConversionError: A licence forbids it, the repository is damaged, or the Hub refuses or cannot be reached.
    """
    folder, branch = Path(folder), revision or _MAIN
    _check_request(folder, repo_id)
    trained = is_trained_export(folder)
    if trained and sign is not None:
        raise ConversionError(
            "An export of trained tensors has no manifest to be signed.", path=folder, next_step="Leave --sign out."
        )
    if trained and (handler or space is not None):
        raise ConversionError(
            "An export of trained tensors cannot be run without its base.",
            path=folder,
            next_step="Publish full weights, with --private where their licences ask for it.",
        )
    if space is not None:
        _check_name(space)
    additions = _additions(folder) if handler else {}
    signer = None if sign is None else ManifestSigner(Path(sign))
    if not trained:
        check_licence(folder, card, private)
    must_be_private = private and not trained and not _is_allowed(folder, card)
    if verify is not None:
        verify(folder)
    elif trained:
        check_trained(folder)
    else:
        _verify(folder, progress)
    remote = _Remote(HfApi(endpoint=endpoint, token=token), repo_id, branch)
    local = _LocalFiles(folder, repo_id, signer, additions)
    page = None if space is None else _Remote(remote.api, space, _MAIN, _SPACE)
    with on_the_hub(remote, uploading=False):
        if not dry_run:
            remote.create(private, must_be_private)
        is_private = page is not None and remote.is_private(private)
    if page is not None:
        with on_the_hub(page, uploading=False):
            _check_space(page, is_private)
    with on_the_hub(remote, uploading=False):
        # The head first: a commit of somebody else after it is noticed, because the upload names its parent.
        head, files = remote.head(), remote.files()
        if signer is not None and SIGNATURE in files and files[SIGNATURE].size <= MAX_SIGNATURE_BYTES:
            local.keep_signature(remote.read(SIGNATURE))
        pin = local.find_pin(files.get(CARD), remote.commits() if CARD in files else [])
        stale = _stale_additions(remote, files, local)
    changes = _compare(local, files, pin, stale)
    if on_changes is not None:
        on_changes(changes)
    to_do = [change for change in changes if change.kind in (NEW, CHANGED, REMOVED)]
    revision = None if dry_run and to_do else pin or head
    if not dry_run:
        with on_the_hub(remote, uploading=True):
            if to_do:
                pin, head = None, remote.upload(local, to_do, head, progress)
            if pin is None:
                pin = head
                remote.enter_pin(local, pin)
        head = revision = pin
    report = PublishReport(repo_id, remote.url(head), revision, changes)
    if page is None:
        return report
    contents = space_files(folder, repo_id, revision or _NO_COMMIT, private=is_private, card=card)
    return replace(report, space=_publish_space(page, contents, is_private, dry_run))


def _publish_space(page: _Remote, contents: dict[str, bytes], private: bool, dry_run: bool) -> SpaceReport:
    """Upload what a Space lacks, in one commit; what others have added to it stays.

    Args:
        page (`_Remote`): The Space.
        contents (`dict[str, bytes]`): Its files by name.
        private (`bool`): Whether to make it private.
        dry_run (`bool`): Only compare.
    """
    with on_the_hub(page, uploading=not dry_run):
        if not dry_run:
            page.create(private, private)
        head, files = page.head(), page.files()
        changes = []
        for name, content in contents.items():
            kind = NEW if name not in files else CHANGED
            if name in files and files[name].blob_id == git_hash(content):
                kind = UNCHANGED
            changes.append(Change(name, kind, len(content)))
        changes += [Change(name, KEPT, files[name].size) for name in sorted(files.keys() - contents.keys())]
        uploads = [change.path for change in changes if change.kind in (NEW, CHANGED)]
        if uploads and not dry_run:
            page.commit([CommitOperationAdd(name, contents[name]) for name in uploads], "Run the checkpoint", head)
    return SpaceReport(page.repo_id, page.page_url() if head else "", private, changes)


def _check_space(page: _Remote, private: bool) -> None:
    """Refuse a public Space of a private checkpoint before anything is uploaded.

    Raises:
        ConversionError: It exists and is public.
    """
    if private and page.exists() and not page.is_private(False):
        raise ConversionError(
            f"The Space {page.repo_id} exists and is public, but would run a private checkpoint.",
            next_step="Make it private in its settings, or choose another --space-id.",
        )


def _additions(folder: Path) -> dict[str, bytes]:
    """The files of an endpoint, where they take the place of nobody's own.

    Raises:
        ConversionError: The folder has others of their names.
    """
    for name, is_own in ((HANDLER, is_own_handler), (REQUIREMENTS, is_own_requirements)):
        if (folder / name).is_file() and not is_own((folder / name).read_bytes()):
            raise ConversionError(
                f"The repository has a {name} of its own, which --endpoint would replace.",
                path=folder / name,
                next_step="Remove or rename it, or publish without --endpoint: then it is uploaded as it is.",
            )
    return endpoint_files(folder)


def _stale_additions(remote: _Remote, files: dict[str, RepoFile], local: _LocalFiles) -> set[str]:
    """What an earlier upload has added for an endpoint and this one does not: the manifest would not know it."""
    kinds = ((HANDLER, is_own_handler), (REQUIREMENTS, is_own_requirements))
    there = [(name, is_own) for name, is_own in kinds if name in files and name not in local.names]
    return {name for name, is_own in there if is_own(remote.read(name))}


def publish_trained(
    folder: str | Path,
    repo_id: str,
    *,
    base: Base,
    export: str | Path | None = None,
    card: str | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> PublishReport:
    """Publish what training changed, without the base.

    Args:
        folder (`str` or `Path`): A converted repository with full weights.
        repo_id (`str`): See `publish`.
        base (`Base`): What the checkpoint was trained from.
        export (`str` or `Path`, *optional*): Folder to make with what is published; by default it is not kept.
        card (`str`, *optional*): Name of the card's values; by default the repository's card says it.
        progress (`ProgressCallback`, *optional*): Told about bytes read and uploaded.
        options (`Any`): Further options of `publish`.

    Raises:
        ConversionError: As `publish`, or the base is not this checkpoint's.
    """
    folder = Path(folder)
    _check_request(folder, repo_id)
    _verify(folder, progress)
    with ExitStack() as stack:
        if export is None:
            # beside the repository: a temporary folder elsewhere may be too small
            scratch = tempfile.TemporaryDirectory(prefix=".trained-", dir=folder.absolute().parent)
            export = Path(stack.enter_context(scratch)) / folder.name
        export_trained(folder, export, base=base, card=card, progress=progress)
        return publish(export, repo_id, progress=progress, **options)


def _check_request(folder: Path, repo_id: str) -> None:
    """Refuse what cannot be published under any licence, before anything is read.

    Raises:
        ConversionError: The folder is not a repository, or the name is none that the Hub allows.
    """
    if not folder.is_dir():
        raise ConversionError("There is no such folder.", path=folder, next_step=_PASS_A_REPOSITORY)
    if not any(folder.iterdir()):
        raise ConversionError("The folder is empty.", path=folder, next_step=_PASS_A_REPOSITORY)
    if not (folder / "config.json").is_file():
        raise ConversionError(
            "The folder holds no config.json, so it is not a model's repository.",
            path=folder,
            next_step=_PASS_A_REPOSITORY,
        )
    _check_name(repo_id)


def _check_name(repo_id: str) -> None:
    """Refuse a name that the Hub does not allow."""
    try:
        validate_repo_id(repo_id)
        wrong = "" if "/" in repo_id else "It does not say whose repository it is."
    except HFValidationError as error:
        wrong = f"{_one_line(error)}."
    if wrong:
        raise ConversionError(
            f"{repo_id!r} cannot be a repository's name on the Hub. {wrong}",
            next_step="Write ORGANISATION/NAME, such as my-name/lisa-7b; your own name is an organisation, too. "
            "Letters, digits and single '-', '_' and '.' are allowed.",
        )


def _is_allowed(folder: Path, card: str | None) -> bool:
    try:
        check_licence(folder, card, private=False)
    except ConversionError:
        return False
    return True


def _verify(folder: Path, progress: ProgressCallback | None) -> None:
    report = verify_repository(folder, progress=progress)
    if not report.ok:
        shown = "; ".join(f"{problem.file}: {problem.cause}" for problem in report.problems[:_MAX_PROBLEMS])
        raise ConversionError(
            f"The repository does not verify, nothing was uploaded: {shown}",
            path=folder,
            next_step="Convert it again; `reasonseg verify` lists every problem.",
        )


class _LocalFiles:
    """The files of the folder, and their content with the usage snippet pinned to a commit.

    Args:
        folder (`Path`): The repository.
        repo_id (`str`): What it will be called.
        signer (`ManifestSigner`, *optional*): Signs the manifest. A signature that lies in the folder belongs to where
            the folder comes from, and stays there.
        additions (`dict[str, bytes]`, *optional*): Files that are published beside or in place of the folder's.
    """

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        signer: ManifestSigner | None = None,
        additions: dict[str, bytes] | None = None,
    ):
        self.folder, self.repo_id, self._signer, self._additions = folder, repo_id, signer, additions or {}
        manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {"files": {}}
        own = repository_files(folder, trained=is_trained(manifest))
        names = sorted({*own, *self._additions} - {SIGNATURE})
        self.names = names + ([] if signer is None else [SIGNATURE])
        self._digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        self._digests |= {name: hashlib.sha256(content).hexdigest() for name, content in self._additions.items()}
        self._signatures: list[bytes] = []

    def keep_signature(self, signature: bytes) -> None:
        """Use a signature again where it is right, because each one is another."""
        self._signatures.append(signature)

    def _signature(self, manifest: bytes) -> bytes:
        for made in self._signatures:
            if self._signer.has_signed(manifest, made):
                return made
        self._signatures.append(self._signer.sign(manifest))
        return self._signatures[-1]

    def size(self, name: str) -> int:
        content = self._made(name)
        return (self.folder / name).stat().st_size if content is None else len(content)

    def sha256(self, name: str) -> str:
        """As verified, where the manifest says it, so that large files are not read again."""
        return self._digests.get(name) or file_sha256(self.folder / name)

    def documents(self, pin: str | None) -> dict[str, bytes]:
        """The files that name the pinned commit: the card, the manifest with the card's sha256, and its signature."""
        found = self._unsigned_documents(pin)
        return found if self._signer is None else found | {SIGNATURE: self._signature(found[MANIFEST])}

    def _unsigned_documents(self, pin: str | None) -> dict[str, bytes]:
        card = {CARD: self._card(pin)} if CARD in self.names else {}
        if MANIFEST not in self.names:
            return card
        changed = {**self._additions, **({} if pin is None else card)}
        if not changed:
            return {**card, MANIFEST: (self.folder / MANIFEST).read_bytes()}
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in changed.items():
                (Path(scratch) / name).write_bytes(content)
            shutil.copy(self.folder / MANIFEST, scratch)
            update_manifest(Path(scratch), changed)
            return {**card, MANIFEST: (Path(scratch) / MANIFEST).read_bytes()}

    def _made(self, name: str) -> bytes | None:
        """The content of a file that is not the folder's as it lies there."""
        if name in self._additions:
            return self._additions[name]
        made = name == SIGNATURE or (name == MANIFEST and bool(self._additions))
        return self.documents(None)[name] if made else None

    def find_pin(self, remote_card: RepoFile | None, commits: list[str]) -> str | None:
        """The commit that the remote card, if it is this one, is pinned to."""
        if remote_card is None or CARD not in self.names or not commits:
            return None
        return next((commit for commit in commits if git_hash(self._card(commit)) == remote_card.blob_id), None)

    def equals(self, name: str, remote: RepoFile, documents: dict[str, bytes]) -> bool:
        """Whether a remote file holds the same bytes."""
        content = documents.get(name, self._additions.get(name))
        if remote.lfs is None:
            return remote.blob_id == git_hash((self.folder / name).read_bytes() if content is None else content)
        return remote.lfs.sha256 == self.sha256(name)

    def operation(self, name: str) -> CommitOperationAdd:
        content = self._made(name)
        if content is not None:
            return CommitOperationAdd(name, content)
        operation = CommitOperationAdd(name, str(self.folder / name))
        operation.upload_info.sha256 = bytes.fromhex(self.sha256(name))
        return operation

    def _card(self, pin: str | None) -> bytes:
        card = (self.folder / CARD).read_bytes()
        return card if pin is None else pin_card(card.decode("utf-8"), self.repo_id, pin).encode("utf-8")


def _compare(local: _LocalFiles, remote: dict[str, RepoFile], pin: str | None, gone: set[str]) -> list[Change]:
    documents = local.documents(pin)
    changes = []
    for name in local.names:
        if name not in remote:
            kind = NEW
        else:
            kind = UNCHANGED if local.equals(name, remote[name], documents) else CHANGED
        changes.append(Change(name, kind, local.size(name)))
    renewed = any(change.path == MANIFEST and change.kind != UNCHANGED for change in changes)
    for name in sorted(remote.keys() - set(local.names)):
        stale = name in gone or any(fnmatch(name, pattern) for pattern in _WEIGHTS)
        stale = stale or (name == SIGNATURE and renewed)
        changes.append(Change(name, REMOVED if stale else KEPT, remote[name].size))
    return changes


class _Remote:
    """The repository on the Hub.

    Args:
        api (`HfApi`): The client.
        repo_id (`str`): `"organisation/name"`.
        branch (`str`): The branch to publish on.
        kind (`str`): `"model"` or `"space"`.
    """

    def __init__(self, api: HfApi, repo_id: str, branch: str, kind: str = _MODEL):
        self.api, self.repo_id, self.branch = api, repo_id, branch
        self._kind = {"repo_type": kind}

    def create(self, private: bool, must_be_private: bool) -> None:
        """Make repository and branch where they do not exist.

        Raises:
            ConversionError: It exists and is public, but must not be.
        """
        # None: an organisation's own setting decides, and an existing repository stays as it is.
        sdk = {"space_sdk": "gradio"} if self._kind["repo_type"] == _SPACE else {}
        self.api.create_repo(self.repo_id, private=True if private else None, exist_ok=True, **sdk, **self._kind)
        if must_be_private and not self.is_private(private):
            raise ConversionError(
                f"{self.repo_id} exists and is public, and these weights may only go to a private repository.",
                next_step="Make it private in its settings, or choose another --repo-id.",
            )
        if self.branch != _MAIN:
            self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)

    def exists(self) -> bool:
        return self.api.repo_exists(self.repo_id, **self._kind)

    def is_private(self, otherwise: bool) -> bool:
        """Whether only its owner sees it; `otherwise` where it does not exist yet."""
        try:
            return bool(self.api.repo_info(self.repo_id, **self._kind).private)
        except RepositoryNotFoundError:
            return otherwise

    def files(self) -> dict[str, RepoFile]:
        """What is there; nothing where the repository or the branch does not exist yet."""
        try:
            entries = list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.branch, **self._kind))
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            return {}
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def read(self, name: str) -> bytes:
        """A small file."""
        with tempfile.TemporaryDirectory() as scratch:
            path = self.api.hf_hub_download(self.repo_id, name, revision=self.branch, local_dir=scratch)
            return Path(path).read_bytes()

    def head(self) -> str | None:
        try:
            return self.api.repo_info(self.repo_id, revision=self.branch, **self._kind).sha
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def commits(self) -> list[str]:
        """Hashes of the branch's commits, the newest first."""
        return [commit.commit_id for commit in self.api.list_repo_commits(self.repo_id, revision=self.branch)]

    def upload(
        self, local: _LocalFiles, changes: list[Change], head: str | None, progress: ProgressCallback | None
    ) -> str:
        """Upload the contents, then enter all of them in one commit.

        Returns:
            `str`: The commit's hash.
        """
        uploads = [change for change in changes if change.kind != REMOVED]
        total, done = sum(change.size for change in uploads), 0
        operations = []
        for change in uploads:
            operation = local.operation(change.path)
            self.api.preupload_lfs_files(self.repo_id, [operation], revision=self.branch)
            operations.append(operation)
            done += change.size
            if progress is not None:
                progress("Uploading", done, total)
        operations += [CommitOperationDelete(change.path) for change in changes if change.kind == REMOVED]
        return self.commit(operations, "Upload the checkpoint", head)

    def commit(self, operations: list, message: str, parent: str | None) -> str:
        """Enter all operations in one commit after `parent`; returns its hash."""
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            revision=self.branch,
            parent_commit=parent,
            **self._kind,
        ).oid

    def enter_pin(self, local: _LocalFiles, pin: str) -> None:
        """Enter a commit's hash into the card; nothing where the card names no revision."""
        documents = local.documents(pin)
        if documents == local.documents(None):
            return
        operations = [CommitOperationAdd(name, content) for name, content in documents.items()]
        self.commit(operations, f"Name {pin} as the revision to use", pin)

    def url(self, revision: str | None) -> str:
        return f"{self.api.endpoint}/{self.repo_id}/tree/{revision}" if revision else ""

    def page_url(self) -> str:
        """The address of a Space."""
        return f"{self.api.endpoint}/spaces/{self.repo_id}"


@contextmanager
def on_the_hub(remote: Any, *, uploading: bool) -> Iterator[None]:
    """Word what the Hub or the way to it raises.

    Args:
        remote: What is to be changed there: has `repo_id` and `api`.
        uploading (`bool`): Whether something may have arrived already.
    """
    again = "What has arrived stays there; the same command resumes from it." if uploading else "Nothing was uploaded."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConversionError(
            "HF_HUB_OFFLINE is set, so that the Hub may not be asked.", next_step=f"{again} Unset it to publish."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConversionError(
            f"The Hub does not let you see or change {remote.repo_id!r}.",
            next_step="Log in with `hf auth login`, with a token that may write there.",
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        login = "Log in with `hf auth login`, with a token that may write there. " if status in (401, 403) else ""
        cause = f"The Hub refused a request for {remote.repo_id!r} ({_one_line(error)})."
        raise ConversionError(cause, next_step=login + again) from error
    except (HTTPError, OSError, RuntimeError) as error:
        if uploading:
            cause = f" ({_one_line(error.__cause__)})" if error.__cause__ is not None else ""
            raise ConversionError(
                f"The upload to {remote.repo_id!r} broke off: {_one_line(error)}{cause}.", next_step=again
            ) from error
        raise ConversionError(
            f"The Hub at {remote.api.endpoint} cannot be reached ({_one_line(error)}).",
            next_step=f"{again} Check the network and the address (endpoint=, or HF_ENDPOINT).",
        ) from error
    except ValueError as error:  # metadata the Hub does not accept
        raise ConversionError(
            f"{remote.repo_id!r}: {_one_line(error)}", next_step="Correct it, then publish again."
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
