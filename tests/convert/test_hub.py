"""Models from the hub, by a small server on loopback that speaks as much of it as is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from convert.errors import CheckpointError, InputError
from convert.gguf_reader import read_gguf
from convert.hub import locate
from quantize.job import quantize
from tests.miniature import Shape, write_checkpoint

REPO = "acme/Mini-Hermes"
COMMIT, OLD = "a" * 40, "b" * 40
NEVER = ("pytorch_model.bin", "modeling_evil.py", "original/consolidated.00.pth", "x.gguf")


@dataclass
class Hub:
    """One repository with a branch, a tag and two commits; notes every path asked for."""

    folders: dict[str, Path]
    url: str = ""
    breaks_off: bool = False
    asked: list[str] = field(default_factory=list)
    names: dict[str, str] = field(
        default_factory=lambda: {"main": COMMIT, "v1.0": OLD, COMMIT: COMMIT, OLD: OLD}
    )

    def info(self, revision: str) -> Any:
        return {"id": REPO, "modelId": REPO, "sha": self.names[revision], "siblings": []}

    def tree(self, revision: str) -> Any:
        folder = self.folders[self.names[revision]]
        return [
            {"type": "file", "path": str(path.relative_to(folder)), "size": len(data), "oid": sha1}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            for data in [path.read_bytes()]
            for sha1 in [hashlib.sha1(data).hexdigest()]
        ]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.reply(404, b"{}", X_Error_Code=code, X_Error_Message="not found")

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        path = self.path.partition("?")[0]
        if found := re.fullmatch(rf"/api/models/{REPO}/(revision|tree)/([^/]+)", path):
            kind, revision = found.groups()
            if revision not in self.hub.names:
                self.missing("RevisionNotFound")
                return
            content = self.hub.info(revision) if kind == "revision" else self.hub.tree(revision)
            self.reply(200, json.dumps(content).encode(), Content_Type="application/json")
        elif found := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            commit = self.hub.names[found[1]]
            data = (self.hub.folders[commit] / found[2]).read_bytes()
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            if self.hub.breaks_off and self.command == "GET":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:1000])
                return
            self.reply(200, data, X_Repo_Commit=commit, ETag=etag)
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    shape = Shape(layers=1)
    new = write_checkpoint(root / "new", shape=shape, shards=2)
    old = write_checkpoint(root / "old", shape=shape, dtype="F16", tied=True)
    for folder in (new, old):
        for name in NEVER:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"never")
        (folder / "LICENSE.txt").write_text("yes")
    hub = Hub({COMMIT: new, OLD: old})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def command(
    home: Path, url: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    more = {"HF_HOME": str(home), "HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1", **environment}
    words = [sys.executable, "-m", "hermes_quant", *map(str, arguments)]
    return subprocess.run(words, env=kept | more, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize(
    ("reference", "commit"),
    [(f"{REPO}@v1.0", OLD), (REPO, COMMIT), (f"{REPO}@{COMMIT}", COMMIT)],
)
def test_quantize_by_branch_tag_or_commit(
    hub: Hub, home: Path, tmp_path: Path, reference: str, commit: str
) -> None:
    targets = ["--to", "Q8_0", "--to", "FP8_DYNAMIC"]
    done = command(home, hub.url, "quantize", reference, "--out", tmp_path / "o", *targets)
    assert done.returncode == 0, done.stderr
    quantize(str(hub.folders[commit]), tmp_path / "local", ["Q8_0", "FP8_DYNAMIC"])
    (path,) = (tmp_path / "local").glob("*.gguf")
    local, remote = read_gguf(path), read_gguf(tmp_path / "o" / "Mini-Hermes-Q8_0.gguf")
    assert all(local.read(name) == remote.read(name) for name in local.tensors | remote.tensors)
    url = f"https://huggingface.co/{REPO}"
    source = {"general.source.repo_url": url, "general.source.url": f"{url}/tree/{commit}"}
    assert remote.fields == local.fields | source
    folder = tmp_path / "o" / "Mini-Hermes-FP8_DYNAMIC"
    sidecar = json.loads((folder / "hermes-quant.json").read_text())
    assert (sidecar["source"]["repo"], sidecar["source"]["revision"]) == (REPO, commit)
    assert sidecar["source"]["name"] is None
    assert (folder / "LICENSE.txt").read_text() == "yes"
    assert not (folder / "LICENSE.txt").is_symlink()
    assert not [name for name in NEVER if any(name in path for path in hub.asked)]
    assert any("LICENSE.txt" in path for path in hub.asked)


def test_convert_and_inspect(hub: Hub, home: Path, tmp_path: Path) -> None:
    done = command(home, hub.url, "convert", REPO, "--out", tmp_path, "--to", "F32", "--json")
    assert done.returncode == 0, done.stderr
    (artifact,) = json.loads(done.stdout)["artifacts"]
    assert artifact["source"]["revision"] == COMMIT
    assert (tmp_path / "Mini-Hermes-F32.gguf").is_file()
    done = command(home, hub.url, "inspect", f"{REPO}@v1.0", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["family"], found["tied_embeddings"]) == ("llama", True)
    assert {stored["type"] for stored in found["stored"]} == {"F16"}


def test_offline_the_cache_is_enough(hub: Hub, home: Path) -> None:
    command(home, hub.url, "inspect", REPO)
    before = len(hub.asked)
    done = command(home, hub.url, "inspect", REPO, "--json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked) == before


@pytest.mark.parametrize("verb", ["quantize", "inspect"])
@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("acme/None", "acme/None@main: cannot be fetched from the hub: "),
        (f"{REPO}@v9", f"{REPO}@v9: cannot be fetched from the hub: "),
        (f"{REPO}--x", "cannot be fetched from the hub: "),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    hub: Hub, tmp_path: Path, verb: str, reference: str, found: str
) -> None:
    more = ["--out", tmp_path / "out", "--to", "Q8_0"] if verb == "quantize" else []
    done = command(tmp_path / "home", hub.url, verb, reference, *more)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {found}" if "--" not in reference else "error: ")
    assert found in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_no_hub_at_all_is_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "http://127.0.0.1:9", "inspect", REPO)
    assert done.returncode == 2
    assert "cannot be fetched from the hub" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_download_that_breaks_off_ends_in_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "breaks_off", True)
    done = command(tmp_path, hub.url, "inspect", REPO)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {REPO}@main: cannot be fetched")


@pytest.mark.parametrize(
    "reference",
    ["a b/c", "a/b/c", "./a/b", "~/a", "/a/b", "a/b@", "@main", "a//b", "C:\\x", "name"],
)
def test_what_is_no_hub_id_is_never_asked_for(reference: str) -> None:
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        locate(reference)


def test_offline_and_not_in_the_cache() -> None:
    with pytest.raises(CheckpointError, match="acme/None@v1: cannot be fetched from the hub"):
        locate("acme/None@v1")  # the tests run offline


def test_a_folder_is_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "None").mkdir(parents=True)
    assert locate("acme/None").repo is None
