"""A Hub on 127.0.0.1 that keeps repositories in memory and speaks the documented calls of uploads and downloads."""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlparse

import huggingface_hub


LARGE_SUFFIXES = (".safetensors", ".bin", ".model", ".parquet")


def pinned_revision(card):
    """The commit that a card's usage snippet loads; None where it is not pinned."""
    found = re.search(r'^revision = "([0-9a-f]{40})"$|^hf download .* --revision ([0-9a-f]{40}) ', card, re.MULTILINE)
    return found and (found[1] or found[2])


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """Branches of commits, each a whole tree: path -> content."""

    def __init__(self, private):
        self.private = private
        self.commits = {}
        self.branches = {"main": [self._add({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")]}

    def _add(self, tree, title):
        oid = hashlib.sha1(json.dumps([title, len(self.commits), sorted(tree)]).encode()).hexdigest()
        self.commits[oid] = (dict(tree), title)
        return oid

    def commit(self, branch, tree, title):
        oid = self._add(tree, title)
        self.branches[branch].append(oid)
        return oid

    def resolve(self, revision):
        if revision in self.branches:
            return self.branches[revision][-1]
        return revision if revision in self.commits else None

    def tree(self, revision="main"):
        return self.commits[self.resolve(revision)][0]


class HubServer(ThreadingHTTPServer):
    """Use as a context manager; `endpoint` is its address.

    Attributes:
        repos (`dict[str, Repo]`): What was published; of Spaces as "spaces/organisation/name",
            of data sets as "datasets/organisation/name".
        requests (`list[tuple[str, str]]`): Method and path of every request.
        stored (`dict[str, bytes]`): Large contents that have arrived, by sha256.
        refuse (`Callable[[str, str], int | None]`): Gives a status to refuse a request with.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.requests, self.stored, self.headers_seen = {}, [], {}, []
        self.refuse = lambda method, path: None
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def environment(self):
        """What a process of its own needs to find it, and nothing else, as the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "NO_PROXY": "127.0.0.1",
        }

    def download(self, repo_id, folder, revision="main"):
        """Write a repository's files into a new folder, as a clone would."""
        for name, data in self.repos[repo_id].tree(revision).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def puts(self):
        return [path for method, path in self.requests if method == "PUT"]

    def commits(self):
        return [path for method, path in self.requests if method == "POST" and "/commit/" in path]


def allow_only_this_machine(monkeypatch):
    """The client may go online, but only to 127.0.0.1, and without the second protocol for large files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    connect = socket.socket.connect

    def connect_here(self, address):
        assert address[0] == "127.0.0.1", f"a request left this machine: {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave together: a body that waits for the head's receipt waits 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle("GET")

    def do_HEAD(self):
        self._handle("HEAD")

    def do_POST(self):
        self._handle("POST")

    def do_PUT(self):
        self._handle("PUT")

    def _handle(self, method):
        url = urlparse(self.path)
        body = self._body()
        with self.server.lock:
            self.server.requests.append((method, url.path))
            if status := self.server.refuse(method, url.path):
                return self._send(status, {"error": "refused by the test"})
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            return self._route(method, parts, parse_qs(url.query), body)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status, value=None, headers=()):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_file(self, method, repo, revision, path):
        oid = repo.resolve(revision)
        data = repo.commits[oid][0].get(path) if oid else None
        if data is None:
            return self._send(404, {"error": "Entry not found"}, [("X-Error-Code", "EntryNotFound")])
        wanted, size = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")), len(data)
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", oid)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            data = data[start : end + 1]
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if method == "GET":
            self.wfile.write(data)

    def _route(self, method, parts, query, body):
        server = self.server
        match [method, *parts]:
            case ["POST", "api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}"
                if wanted.get("type") == "space":
                    assert wanted["sdk"] == "gradio"
                    name = f"spaces/{name}"
                elif wanted.get("type") == "dataset":
                    name = f"datasets/{name}"
                if name in server.repos:
                    return self._send(409, {"url": f"{server.endpoint}/{name}", "error": "You already created it"})
                private = wanted.get("private") or wanted.get("visibility") == "private"
                server.repos[name] = Repo(bool(private))
                return self._send(200, {"url": f"{server.endpoint}/{name}", "name": name})
            case ["GET" | "HEAD", organisation, name, "resolve", revision, *path]:
                return self._send_file(method, server.repos[f"{organisation}/{name}"], revision, "/".join(path))
            case ["GET" | "HEAD", "datasets", organisation, name, "resolve", revision, *path]:
                repo = server.repos[f"datasets/{organisation}/{name}"]
                return self._send_file(method, repo, revision, "/".join(path))
            case ["POST", "api", "validate-yaml"]:
                return self._send(200, {"errors": [], "warnings": []})
            case ["PUT", "lfs", oid]:
                if hashlib.sha256(body).hexdigest() != oid:
                    return self._send(400, {"error": "wrong content"})
                server.stored[oid] = body
                return self._send(200)
            case ["POST", organisation, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                return self._lfs_batch(f"{organisation}/{name.removesuffix('.git')}", json.loads(body))
            case ["POST", "datasets", organisation, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                return self._lfs_batch(f"datasets/{organisation}/{name.removesuffix('.git')}", json.loads(body))
            case [_, "api", "models" | "spaces" | "datasets" as kind, organisation, name, *rest]:
                name = f"{organisation}/{name}" if kind == "models" else f"{kind}/{organisation}/{name}"
                repo = server.repos.get(name)
                if repo is None:
                    return self._send(404, {"error": "Repository not found"}, [("X-Error-Code", "RepoNotFound")])
                return self._repo(method, name, repo, rest, query, body)
        return self._send(404, {"error": f"the test server does not know {method} {'/'.join(parts)}"})

    def _lfs_batch(self, name, wanted):
        assert wanted["operation"] == "upload"
        assert wanted["hash_algo"] == "sha256"
        objects = []
        for entry in wanted["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.stored:
                answer["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}}
            objects.append(answer)
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _repo(self, method, name, repo, rest, query, body):
        revision = rest[1] if len(rest) > 1 else "main"
        kind = rest[0] if rest else "revision"
        if kind == "branch" and method == "POST":
            if revision in repo.branches:
                return self._send(409, {"error": "exists"})
            repo.branches[revision] = list(repo.branches["main"])
            return self._send(200, {})
        oid = repo.resolve(revision)
        if oid is None:
            return self._send(404, {"error": "Invalid rev id"}, [("X-Error-Code", "RevisionNotFound")])
        tree = repo.commits[oid][0]
        if kind == "revision":
            siblings = [{"rfilename": path} for path in tree]
            return self._send(200, {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})
        if kind == "tree":
            return self._send_tree(tree, "".join(f"{part}/" for part in rest[2:]), "recursive" in query)
        if kind == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return self._send(200, [self._entry(path, tree[path]) for path in wanted if path in tree])
        if kind == "commits":
            log = [
                {"id": commit, "title": repo.commits[commit][1], "message": "", "authors": []}
                for commit in reversed(repo.branches[revision])
            ]
            for entry in log:
                entry["date"] = "2024-01-01T00:00:00.000Z"
            return self._send(200, log)
        if kind == "preupload":
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular"
                entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                if file["path"] in tree:
                    data = tree[file["path"]]
                    entry["oid"] = hashlib.sha256(data).hexdigest() if mode == "lfs" else git_sha1(data)
                files.append(entry)
            return self._send(200, {"files": files})
        if kind == "commit" and method == "POST":
            return self._commit(name, repo, revision, oid, body)
        return self._send(404, {"error": f"the test server does not know {method} {rest}"})

    def _send_tree(self, tree, folder, is_recursive):
        below = {path: data for path, data in sorted(tree.items()) if path.startswith(folder)}
        if folder and not below:
            return self._send(404, {"error": "Entry not found"}, [("X-Error-Code", "EntryNotFound")])
        parents = {str(above) for path in below for above in PurePosixPath(path).parents} - {".", folder.rstrip("/")}
        entries = [{"type": "directory", "path": path, "oid": git_sha1(path.encode()), "size": 0} for path in parents]
        entries = sorted(entries, key=lambda entry: entry["path"]) + [self._entry(*item) for item in below.items()]
        is_wanted = lambda path: is_recursive or "/" not in path.removeprefix(folder)  # noqa: E731
        return self._send(200, [entry for entry in entries if is_wanted(entry["path"])])

    def _entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if path.endswith(LARGE_SUFFIXES):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        return entry

    def _commit(self, name, repo, branch, head, body):
        lines = [json.loads(line) for line in body.splitlines()]
        header, tree = lines[0]["value"], dict(repo.commits[head][0])
        if header.get("parentCommit") not in (None, head):
            return self._send(412, {"error": "A commit has happened since."})
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.stored:
                        return self._send(400, {"error": f"LFS object {value['oid']} does not exist"})
                    tree[value["path"]] = self.server.stored[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
        oid = repo.commit(branch, tree, header["summary"])
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        return self._send(200, {"success": True, "commitOid": oid, "commitUrl": url})
