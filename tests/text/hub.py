"""A small Hugging Face hub on loopback: one dataset repository, and faults on demand."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files`: path -> content. The other fields make it misbehave."""

    files: dict[str, bytes]
    repo_id: str = "someone/exports"
    commit: str = COMMIT
    cut_after_bytes: dict[str, int] = field(default_factory=dict)  # a response ends after so many bytes of a file ...
    num_cuts: int = 1  # ... so many times
    served_instead: dict[str, bytes] = field(default_factory=dict)  # bytes other than the ones whose hash is stated
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def downloads(self, name: str) -> list[str]:
        """The Range headers of the GET requests for a file."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith("/" + name)]

    def start(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            state = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server


def is_large(path: str) -> bool:
    """Whether the hub keeps a file in large-file storage, and so states its sha256."""
    return path.endswith((".bin", ".model"))


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append((self.command, path, self.headers.get("Range", "")))
        api, resolve = f"/api/datasets/{self.state.repo_id}", f"/datasets/{self.state.repo_id}/resolve/"
        if path.startswith(f"{api}/tree/"):
            self._send_tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        elif path == api or path.startswith(f"{api}/revision/"):
            self._send_json({"id": self.state.repo_id, "sha": self.state.commit, "siblings": []})
        elif path.startswith(resolve):
            self._send_file(path.removeprefix(resolve).partition("/")[2], with_body=with_body)
        else:
            self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _send_tree(self, folder: str) -> None:
        entries = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": blob_id(content),
                **({"lfs": lfs(content)} if is_large(path) else {}),
            }
            for path, content in self.state.files.items()
            if path.rpartition("/")[0] == folder
        ]
        if entries:
            self._send_json(entries)
        else:
            self._send_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _send_file(self, path: str, *, with_body: bool) -> None:
        stated = self.state.files.get(path)
        if stated is None:
            self._send_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = self.state.served_instead.get(path, stated)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = content[start:]
        self.send_response(206 if start else 200)
        etag = hashlib.sha256(stated).hexdigest() if is_large(path) else blob_id(stated)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.state.commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        cut = self.state.cut_after_bytes.get(path)
        if cut is not None and self.state.num_cuts > 0:
            self.state.num_cuts -= 1
            self.wfile.write(body[: max(cut - start, 0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def _send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def lfs(content: bytes) -> dict[str, object]:
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
