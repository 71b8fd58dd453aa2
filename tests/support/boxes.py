"""A stand-in for Vagrant's public catalogue: it has one box, under the public box's name, which is a file of ours.

Rule: what is asked and answered is the catalogue's (developer.hashicorp.com/vagrant/docs/boxes/format): the box's
description as JSON, and the box. Each request is printed. Standard library only, for the host that Vagrant runs on.

    python3 tests/support/boxes.py NAME BOX PORT-FILE      debian/bookworm64 netagent.box port
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = "/files/libvirt.box"
VERSION = "12.20250101.1"


def description(name: str, address: str, digest: str) -> dict[str, object]:
    """What the catalogue says of a box."""
    provider = {"name": "libvirt", "url": f"{address}{FILE}", "checksum_type": "sha256", "checksum": digest}
    return {"name": name, "versions": [{"version": VERSION, "status": "active", "providers": [provider]}]}


def serve(name: str, box: Path, port_file: Path) -> None:
    with box.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            if self.path == f"/{name}":
                address = f"http://{self.headers['Host']}"
                content = json.dumps(description(name, address, digest)).encode()
                self.head(200, "application/json", len(content))
                if self.command == "GET":
                    self.wfile.write(content)
            elif self.path == FILE:
                self.head(200, "application/octet-stream", box.stat().st_size)
                if self.command == "GET":
                    with box.open("rb") as file:
                        shutil.copyfileobj(file, self.wfile, 1 << 20)
            else:
                self.head(404, "application/json", 0)

        def head(self, code: int, kind: str, length: int) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            print(format % args, flush=True)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port_file.with_suffix(".new").write_text(str(server.server_port))
        port_file.with_suffix(".new").rename(port_file)
        server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
