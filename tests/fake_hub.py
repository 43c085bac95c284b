"""A Hugging Face Hub on 127.0.0.1 that knows just what a push needs."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import yaml

TOKEN = "hf_writer"
READ_ONLY = "hf_reader"


class FakeHub(ThreadingHTTPServer):
    """Serves until closed; `repos` maps a repository's id to whether it is private and its files.

    Files that end in .safetensors or .png go through LFS, as on the real Hub. A card is refused if
    its base_model is no model id.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos = {}
        self.blobs = {}
        self.requests = []
        self.captive = None  # the status of a login page that answers in its place
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def show(self, path):
        repo_id = path.removeprefix("/api/models/")
        if repo_id not in self.repos:
            return 404, {"error": "Repository not found"}
        return 200, {"id": repo_id, "private": self.repos[repo_id]["private"], "siblings": []}

    def create(self, path, body):
        wanted = json.loads(body)
        repo_id = f"{wanted['organization'] or 'jane'}/{wanted['name']}"
        status = 409 if repo_id in self.repos else 200
        private = wanted.get("visibility") == "private"
        self.repos.setdefault(repo_id, {"private": private, "files": {}})
        return status, {"url": f"{self.url}/{repo_id}", "id": repo_id, "name": repo_id}

    def validate(self, path, body):
        card = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        base = card.get("base_model", "")
        if base.startswith((".", "/")) or base.count("/") > 1:
            return 400, {"errors": [{"message": f'"base_model" with value "{base}" is not valid'}]}
        return 200, {"errors": [], "warnings": []}

    def preupload(self, path, body):
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if n.endswith((".safetensors", ".png")) else "regular" for n in names]
        return 200, {
            "files": [
                {"path": name, "uploadMode": mode, "shouldIgnore": False}
                for name, mode in zip(names, modes, strict=True)
            ]
        }

    def batch(self, path, body):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, path, body):
        repo_id = path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                continue
            self.repos[repo_id]["files"][value["path"]] = content
        url = f"{self.url}/{repo_id}/commit/1"
        return 200, {"commitUrl": url, "commitOid": "1", "hookOutput": ""}


class Handler(BaseHTTPRequestHandler):
    """Checks the token and hands each request to the hub."""

    server: FakeHub
    routes: ClassVar = {
        "/repos/create": FakeHub.create,
        "/validate-yaml": FakeHub.validate,
        "/preupload/": FakeHub.preupload,
        "/lfs/objects/batch": FakeHub.batch,
        "/commit/": FakeHub.commit,
    }

    def handle_captive(self):
        """Answer as a network that wants a login first; whether it does."""
        if self.server.captive is None:
            return False
        self.body()
        page = b"<html><body>Please log in to this network.</body></html>"
        away = self.server.captive == 302 and self.path != "/login"
        self.send_response(302 if away else 200 if self.path == "/login" else self.server.captive)
        if away:
            self.send_header("Location", f"{self.server.url}/login")
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
        return True

    def do_GET(self):
        if self.handle_captive():
            return
        self.answer(*self.server.show(self.path))

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_POST(self):
        if self.handle_captive():
            return
        body = self.body()
        self.server.requests.append(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            return self.answer(401, {"error": "Invalid credentials"})
        if token == READ_ONLY:
            return self.answer(403, {"error": "You don't have the rights"})
        action = next(action for route, action in self.routes.items() if route in self.path)
        return self.answer(*action(self.server, self.path, body))

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status, data):
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        """Not to the tests' output."""
