"""A stand-in of the hub's API on loopback: repositories, branches, commits, large files and downloads, in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]


class FakeHub:
    """What it holds: repository -> branch or commit -> files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, str]] = {}
        """Branch -> commit."""
        self.commits: dict[str, Files] = {}
        self.large: Files = {}
        """By SHA-256."""
        self.fetched: list[str] = []
        self.private: set[str] = set()

    def files(self, repository: str, revision: str) -> Files | None:
        branches = self.repositories.get(repository, {})
        return self.commits.get(branches.get(revision, revision))

    def commit(self, repository: str, branch: str, files: Files) -> str:
        sha = hashlib.sha1(json.dumps([repository, branch, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = files
        self.repositories[repository][branch] = sha
        return sha


@contextmanager
def fake_hub(token: str) -> Iterator[tuple[str, FakeHub]]:
    """Its address, and the hub. Writes need the token."""
    hub = FakeHub()

    class Answers(_Answers):
        pass

    Answers.hub, Answers.token = hub, token
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    hub: FakeHub
    token: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body, path = self.body(), unquote(urlparse(self.path).path).strip("/")
        if self.headers.get("Authorization") != f"Bearer {self.token}" and "git/info/lfs" not in path:
            self.answer({"error": "Invalid user token."}, 401)
        elif path == "api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._large(json.loads(body))
        else:
            self._change(path, body)

    def _change(self, path: str, body: bytes) -> None:
        _, _, owner, name, action, *rest = path.split("/")
        repository, branch = f"{owner}/{name}", "/".join(rest)
        branches = self.hub.repositories[repository]
        if action == "branch":
            known = branch in branches
            branches.setdefault(branch, branches["main"])
            self.answer({}, 409 if known else 200)
        elif action == "preupload":
            self.answer({"files": [_upload(file["path"]) for file in json.loads(body)["files"]]})
        else:
            assert action == "commit", path
            self._commit(repository, branch, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        known = repository in self.hub.repositories
        if not known:
            self.hub.repositories[repository] = {}
            self.hub.commit(repository, "main", {".gitattributes": b""})
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(repository)
        self.answer({"url": f"{self.address}/{repository}", "name": repository}, 409 if known else 200)

    def _large(self, asked: dict[str, Any]) -> None:
        objects = [
            {**found, "actions": {"upload": {"href": f"{self.address}/large/{found['oid']}"}}}
            for found in asked["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        body, digest = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.large[digest] = body
        self.answer({})

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.files(repository, branch) or {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(repository, branch, files)
        url = f"{self.address}/{repository}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            self._about("/".join(parts[2:4]), parts[4:])
            return
        assert parts[2] == "resolve"
        files, name = self.hub.files("/".join(parts[:2]), parts[3]) or {}, "/".join(parts[4:])
        if name not in files:
            self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.hub.fetched.append(name)
        self.answer(files[name], 200, {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": parts[3]})

    def _about(self, repository: str, rest: list[str]) -> None:
        """`rest`: nothing, or revision or tree and a branch or commit."""
        revision = "/".join(rest[1:]) or "main"
        files, branches = self.hub.files(repository, revision), self.hub.repositories.get(repository)
        if files is None or branches is None:
            code = "RepoNotFound" if branches is None else "RevisionNotFound"
            self.answer({"error": "not found"}, 404, {"X-Error-Code": code})
        elif rest[:1] == ["tree"]:
            found = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])} for name in files
            ]
            self.answer(found)
        else:
            siblings = [{"rfilename": name} for name in files]
            sha = branches.get(revision, revision)
            self.answer({"id": repository, "sha": sha, "siblings": siblings, "private": False, "tags": []})


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _upload(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
