"""Pushing an export to the hub: its own client against a server that does as the hub does, in small."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import CheckpointExistsError, InputError, RunError
from bot_dist.formats.export_folder import RECORD
from bot_dist.pipeline.export import export_store
from tests.conftest import Pico

Maker = Callable[..., Pico]
TOKEN = "hf_NotToBeSeenAnywhere"


class Hub:
    """Repositories by name: their files by path."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens = {TOKEN}
        self.fails: dict[str, int] = {}
        """Status by a part of the path."""


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        if self.headers.get("Authorization") != f"Bearer {next(iter(hub.tokens))}":
            return self._send(401, {"error": "Invalid username or password."})
        if status := next((status for part, status in hub.fails.items() if part in path), None):
            return self._send(status, {"error": f"no {path}"})
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "me", "type": "user"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            hub.created.append(asked)
            hub.repositories.setdefault(f"{asked.get('organization') or 'me'}/{asked['name']}", {})
            return self._send(200, {"url": f"http://{self.headers['Host']}/me/{asked['name']}"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        name = next((name for name in hub.repositories if f"/{name}/" in f"{path}/"), None)
        if name is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        files = hub.repositories[name]
        if "/tree/" in path:
            return self._send(
                200, [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in files.items()]
            )
        if "/preupload/" in path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            return self._send(
                200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]}
            )
        if "/commit/" in path:
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
                elif told["key"] == "deletedFile":
                    del files[told["value"]["path"]]
            return self._send(
                200,
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}",
                },
            )
        if "/resolve/" in path:
            data = files[path.partition("/resolve/")[2].partition("/")[2]]
            return self._send(200, data, {"ETag": '"1"', "X-Repo-Commit": "1" * 40})
        return self._send(200, {"id": name, "sha": "1" * 40, "siblings": [{"rfilename": p} for p in files]})

    def _send(self, status: int, said: Any, headers: dict[str, str] | None = None) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    made = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": made}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    server.shutdown()
    server.server_close()


def test_an_export_is_pushed_whole(hub: Hub, pico_llama: Maker, tmp_path: Path) -> None:
    made = pico_llama()
    (made.folder / "additional_chat_templates").mkdir()
    (made.folder / "LICENSE").write_text("Do what you like.")
    report = export_store(made.url, "hf://me/pico-small")
    local = export_store(made.url, str(tmp_path / "pico-small"))
    assert (report.folder, report.files) == ("hf://me/pico-small", local.files)
    files = hub.repositories["me/pico-small"]
    assert files == {name: (tmp_path / "pico-small" / name).read_bytes() for name in local.files}
    assert hub.created[0]["visibility"] == "private"
    assert b"# pico-small" in files["README.md"]
    assert TOKEN.encode() not in b"".join(files.values())


def test_a_gguf_file_is_pushed_with_its_card_and_licence(hub: Hub, pico_llama: Maker) -> None:
    pytest.importorskip("gguf")
    made = pico_llama()
    (made.folder / "LICENSE").write_text("Do what you like.")
    export_store(made.url, "hf://me/pico-gguf", to="gguf")
    files = hub.repositories["me/pico-gguf"]
    assert files.keys() == {"pico-gguf.gguf", "README.md", "LICENSE", RECORD}
    assert b"library_name: gguf" in files["README.md"]


def test_the_next_export_replaces_only_what_the_last_has_made(hub: Hub, pico_llama: Maker) -> None:
    made = pico_llama()
    export_store(made.url, "hf://me/pico", max_shard_bytes=9_000)
    files = hub.repositories["me/pico"]
    assert "model.safetensors.index.json" in files
    files["thesis.txt"] = b"mine"
    with pytest.raises(CheckpointExistsError, match=r"hf://me/pico: already holds files \(.*--overwrite"):
        export_store(made.url, "hf://me/pico")
    export_store(made.url, "hf://me/pico", overwrite=True)
    assert "model.safetensors.index.json" not in files
    assert {"model.safetensors", "thesis.txt"} <= files.keys()


def test_what_no_export_has_made_stays(hub: Hub, pico_llama: Maker) -> None:
    hub.repositories["me/pico"] = {".gitattributes": b"x", "README.md": b"mine"}
    report = export_store(pico_llama().url, "hf://me/pico")
    assert hub.repositories["me/pico"]["README.md"] == b"mine"
    assert "stays as it is" in report.notes[0]
    hub.repositories["me/other"] = {"config.json": b"{}"}
    with pytest.raises(CheckpointExistsError, match=r"no export has made config\.json"):
        export_store(pico_llama().url, "hf://me/other", overwrite=True)
    assert hub.repositories["me/other"] == {"config.json": b"{}"}


@pytest.mark.parametrize(
    "name", ["hf://pico", "hf://datasets/me/x", "hf://me/pico/sub", "hf://me/pico@main", "hf://me/p q"]
)
def test_other_names_are_refused(name: str, pico_llama: Maker) -> None:
    with pytest.raises(InputError, match="write hf://USER/MODEL"):
        export_store(pico_llama().url, name)


def test_the_hub_takes_no_dcp(pico_llama: Maker) -> None:
    with pytest.raises(InputError, match="the hub takes GGUF and safetensors"):
        export_store(pico_llama().url, "hf://me/pico", to="dcp")


def test_without_a_token_nothing_begins(hub: Hub, pico_llama: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token of the hub; set HF_TOKEN, or log in"):
        export_store(pico_llama().url, "hf://me/pico")
    monkeypatch.setenv("HF_TOKEN", "hf_SomeOther")
    with pytest.raises(InputError, match="the hub refuses the token") as raised:
        export_store(pico_llama().url, "hf://me/pico")
    assert "hf_SomeOther" not in str(raised.value)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("part", "status", "error", "message"),
    [
        ("/api/repos/create", 403, InputError, "the hub refuses the token .403"),
        ("/commit/", 413, RunError, "the hub answers 413: no /api/models/me/pico/commit/main"),
        ("/preupload/", 400, RunError, "the hub answers 400"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, pico_llama: Maker, part: str, status: int, error: type[Exception], message: str
) -> None:
    hub.fails[part] = status
    with pytest.raises(error, match=message) as raised:
        export_store(pico_llama().url, "hf://me/pico")
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert not hub.repositories.get("me/pico")
