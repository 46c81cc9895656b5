"""``gs://`` against a small stand-in for Google's XML interface: the requests are right, and so is what answers mean.

Google's own service is not reachable where the tests run.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from bot_dist.errors import CheckpointError
from bot_dist.storage.folder import Request, Storage


class Gcs(BaseHTTPRequestHandler):
    """One bucket in memory."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["x-goog-if-generation-match"] == "0" and self.key in self.objects:
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.objects[self.key] = data
        self.answer(200, etag=data)

    def do_GET(self) -> None:
        if not self.key:
            self.answer(200, self.listing())
        elif (data := self.objects.get(self.key)) is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif span := self.headers["range"]:
            start, stop = map(int, span.removeprefix("bytes=").split("-"))
            part = data[start : stop + 1]
            self.answer(206, part, etag=data, span=f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        else:
            self.answer(200, data, etag=data)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.answer(204 if self.objects.pop(self.key, None) is not None else 404)

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").strip("/")

    def listing(self) -> bytes:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        found, folders = "", set()
        for name, data in sorted(self.objects.items()):
            below = name.removeprefix(prefix)
            if below == name and prefix:
                continue
            if delimiter and delimiter in below:
                folders.add(prefix + below.partition(delimiter)[0] + delimiter)
                continue
            found += f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
            found += "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        found += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        return f"<ListBucketResult>{found}</ListBucketResult>".encode()

    def answer(self, status: int, body: bytes = b"", *, etag: bytes | None = None, span: str | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", email.utils.formatdate(0, usegmt=True))
        if etag is not None:
            self.send_header("ETag", f'"{hashlib.md5(etag).hexdigest()}"')
        if span is not None:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bucket", (Gcs,), {"objects": {}}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    account = tmp_path / "account.json"
    base = f"http://127.0.0.1:{server.server_address[1]}"
    keys = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account.write_text(json.dumps({"gcs_base_url": base, "disable_oauth": True, **keys}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    yield "gs://bucket/store"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_written_listed_read_and_removed(url: str) -> None:
    storage = Storage(url)
    assert storage.is_empty()
    storage.write("a/x", [b"12", b"345"])
    assert (storage.names("a"), storage.names(""), storage.sizes("")) == (["x"], ["a"], {"a/x": 5})
    assert (storage.exists("a"), storage.exists("a/x"), storage.exists("a/y")) == (True, True, False)
    buffer = bytearray(3)
    storage.read_into([Request("a/x", 1, [memoryview(buffer)])])
    assert (bytes(buffer), storage.read("a/x")) == (b"234", b"12345")
    with pytest.raises(CheckpointError, match=r"gs://bucket/store/a/y: no such file"):
        storage.read("a/y")
    storage.create("m", b"first")
    with pytest.raises(FileExistsError):
        storage.create("m", b"second")
    assert storage.read("m") == b"first"
    storage.remove("a/x", "m")
    assert storage.is_empty()
