"""`release publish`: to a small hub on loopback, to folders and URLs; broken off, it goes on."""

from __future__ import annotations

import base64
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

from convert.errors import InputError, OutputError
from verify.release.check import check_release
from verify.release.publish import Target, publish

TOKEN = "a token of the test's own"


@dataclass
class Hub:
    """Repositories by name as {path: bytes}; large files arrive by their sha256 first."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    pull_requests: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    breaks_off_after: int = 1 << 30
    ails: bool = False


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, code: int, content: Any = None, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            there = found[1] in self.hub.repositories
            self.reply(200 if there else 404, {"id": found[1], "sha": "a" * 40, "siblings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.*", path):
            names = self.hub.repositories[found[1]]
            self.reply(200, [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path):
            if self.hub.ails:
                self.reply(403, {"error": "not just now"})
                return
            self.download(self.hub.repositories.get(found[1], {}).get(found[2]))
        else:
            self.reply(404, {}, X_Error_Code="EntryNotFound")

    def download(self, data: bytes | None) -> None:
        if data is None:
            self.reply(404, {}, X_Error_Code="EntryNotFound")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        data = self.body()
        self.hub.uploads += 1
        if self.hub.uploads > self.hub.breaks_off_after:
            self.reply(403, {"error": "the hub is going home"})
            return
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self.reply(200, {})

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        raw = self.body()
        if path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            self.hub.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.reply(200, {"url": f"{self.hub.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(raw)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["size"] > 10_000 else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in files
            ]
            self.reply(200, {"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            self.reply(200, {"transfer": "basic", "objects": self.batch(json.loads(raw))})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(found[1], raw, create_pr="create_pr=1" in query)
        else:
            self.reply(404, {"error": f"no such route: {path}"})

    def batch(self, asked: Any) -> list[Any]:
        objects = []
        for entry in asked["objects"]:
            known = entry["oid"] in self.hub.large
            url = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
            objects.append({**entry, "authenticated": True, **({} if known else {"actions": url})})
        return objects

    def commit(self, name: str, raw: bytes, *, create_pr: bool) -> None:
        files, deleted = {}, []
        for line in raw.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        answer = {"commitOid": "b" * 40, "commitUrl": f"{self.hub.url}/{name}/commit/b"}
        if create_pr:
            self.hub.pull_requests.append(name)
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/1"
        else:
            self.hub.repositories[name] |= files
            for path in deleted:
                del self.hub.repositories[name][path]
        self.reply(200, answer)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def command(hub_url: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line against a hub on loopback, xet's own transfer service left out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    more = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    words = [sys.executable, "-m", "hermes_quant", "release", "publish", *map(str, arguments)]
    return subprocess.run(words, env=kept | more, capture_output=True, text=True, check=False)


def test_everything_arrives_on_the_hub_and_passes_the_check_there(
    hub: Hub, dist: Path, tmp_path: Path
) -> None:
    done = command(hub.url, tmp_path / "h", dist, "--owner", "acme", "--json")
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories) == {"acme/Mini-GGUF", "acme/Mini-FP8_DYNAMIC"}
    assert all(hub.private.values())
    for name, files in hub.repositories.items():
        place = tmp_path / "downloaded" / name
        for path, data in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
        assert check_release(place).passed
    assert TOKEN not in done.stdout + done.stderr


def test_a_file_of_an_earlier_release_goes_and_what_no_release_put_there_stays(
    hub: Hub, dist: Path, tmp_path: Path
) -> None:
    assert command(hub.url, tmp_path / "h", dist, "--owner", "acme").returncode == 0
    there = hub.repositories["acme/Mini-GGUF"]
    earlier = json.loads(there["manifest.json"])
    earlier["files"].append({"path": "Mini-[old].gguf", "size_bytes": 3, "sha256": "0" * 64})
    there |= {"manifest.json": json.dumps(earlier).encode()}
    there |= {"Mini-[old].gguf": b"old", "notes.txt": b"mine", ".gitattributes": b""}
    done = command(hub.url, tmp_path / "h", dist, "--owner", "acme")
    assert done.returncode == 0, done.stderr
    assert "Mini-[old].gguf" not in there
    assert {"notes.txt", ".gitattributes", "Mini-Q8_0.gguf"} <= set(there)
    assert there["manifest.json"] == (dist / "Mini-GGUF" / "manifest.json").read_bytes()


def test_an_earlier_manifest_that_cannot_be_fetched_is_not_taken_for_none(
    hub: Hub, dist: Path, tmp_path: Path
) -> None:
    assert command(hub.url, tmp_path / "h", dist, "--owner", "acme").returncode == 0
    before = dict(hub.repositories["acme/Mini-GGUF"])
    hub.ails = True
    done = command(hub.url, tmp_path / "h", dist, "--owner", "acme")
    assert done.returncode == 2, done.stdout
    assert "the hub did not take it" in done.stderr.splitlines()[-1]
    assert hub.repositories["acme/Mini-GGUF"] == before


def test_a_pull_request_changes_no_branch(hub: Hub, dist: Path, tmp_path: Path) -> None:
    options = ["--owner", "acme", "--create-pr", "--public"]
    done = command(hub.url, tmp_path / "h", dist, *options)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.pull_requests) == ["acme/Mini-FP8_DYNAMIC", "acme/Mini-GGUF"]
    assert not any(hub.repositories.values())
    assert not any(hub.private.values())
    assert "discussions/1" in done.stdout


def test_a_hub_that_goes_down_in_the_middle_is_one_line_and_a_rerun_goes_on(
    hub: Hub, dist: Path, tmp_path: Path
) -> None:
    hub.breaks_off_after = 2
    done = command(hub.url, tmp_path / "h", dist, "--owner", "acme")
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: acme/Mini-")
    assert "run the same command again" in said
    assert "Traceback" not in done.stderr
    assert not all(hub.repositories.values())
    kept = set(hub.large)
    assert kept
    hub.breaks_off_after, hub.uploads = 1 << 30, 0
    done = command(hub.url, tmp_path / "h", dist, "--owner", "acme")
    assert done.returncode == 0, done.stderr
    assert all(hub.repositories.values())
    assert hub.uploads == len(hub.large) - len(kept)  # what had arrived was not sent again


def test_no_hub_at_all_is_one_line(dist: Path, tmp_path: Path) -> None:
    done = command("http://127.0.0.1:9", tmp_path / "h", dist, "--owner", "acme")
    assert done.returncode == 2
    assert "the hub did not take it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(dist: Path, tmp_path: Path) -> None:
    options = ["--owner", "acme", "--dry-run", "--json"]
    done = command("http://127.0.0.1:9", tmp_path / "h", dist, *options)
    assert done.returncode == 0, done.stderr
    uploads = {u["place"]: u for u in json.loads(done.stdout)["uploads"]}
    assert set(uploads) == {"acme/Mini-GGUF", "acme/Mini-FP8_DYNAMIC"}
    assert "Mini-Q8_0.gguf" in uploads["acme/Mini-GGUF"]["files"]
    assert uploads["acme/Mini-GGUF"]["sent"] == 0


def test_what_is_not_whole_is_not_published(dist: Path, tmp_path: Path) -> None:
    path = dist / "Mini-GGUF" / "Mini-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"Mini: files: .*Mini-Q8_0\.gguf"):
        publish(dist, Target(str(tmp_path / "to")))
    assert not (tmp_path / "to").exists()
    with pytest.raises(InputError, match="one repository of a release"):
        publish(dist / "Mini-GGUF", Target(str(tmp_path / "to")))


def test_a_folder_gets_a_release_that_passes_and_only_what_is_missing(
    dist: Path, tmp_path: Path
) -> None:
    first = publish(dist, Target(str(tmp_path / "to")))
    assert [u.sent for u in first] == [len(u.files) for u in first]
    assert check_release(tmp_path / "to" / "Mini-GGUF").passed
    (tmp_path / "to" / "Mini-GGUF" / "Mini-Q8_0.gguf").write_bytes(b"cut")
    again = publish(dist, Target(str(tmp_path / "to")))
    assert [u.sent for u in again] == [0, 1]
    assert check_release(tmp_path / "to" / "Mini-GGUF").passed


def test_a_folder_loses_the_files_of_its_earlier_release_even_after_a_break(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    publish(dist, Target(str(tmp_path / "to")))
    place = tmp_path / "to" / "Mini-GGUF"
    earlier = json.loads((place / "manifest.json").read_text())
    earlier["files"].append({"path": "old/Mini.gguf", "size_bytes": 3, "sha256": "0" * 64})
    (place / "manifest.json").write_text(json.dumps(earlier))
    (place / "old").mkdir()
    (place / "old" / "Mini.gguf").write_bytes(b"old")
    (place / "notes.txt").write_text("mine")

    def full(self: Any, local: str, remote: str, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    with pytest.raises(OutputError, match="No space left"):
        publish(dist, Target(str(tmp_path / "to")))
    assert not (place / "manifest.json").exists()
    monkeypatch.undo()
    publish(dist, Target(str(tmp_path / "to")))
    assert not (place / "old" / "Mini.gguf").exists()
    assert not (place / "manifest.json.earlier").exists()
    (place / "notes.txt").unlink()
    assert check_release(place).passed


def test_a_publication_stopped_at_its_deletions_is_ended_by_the_next_release(
    dist: Path, tmp_path: Path
) -> None:
    publish(dist, Target(str(tmp_path / "to")))
    place = tmp_path / "to" / "Mini-GGUF"
    manifest = json.loads((place / "manifest.json").read_text())
    for number, name in enumerate(("manifest.json.earlier", "manifest.json")):
        old = {"path": f"old-{number}.gguf", "size_bytes": 3, "sha256": "0" * 64}
        (place / name).write_text(json.dumps({**manifest, "files": [*manifest["files"], old]}))
        (place / old["path"]).write_bytes(b"old")
    publish(dist, Target(str(tmp_path / "to")))
    assert not list(place.glob("old-*"))
    assert check_release(place).passed


def test_a_url_of_fsspec_is_a_target_too(dist: Path) -> None:
    import fsspec

    publish(dist, Target("memory://bucket/releases"))
    system = fsspec.filesystem("memory")
    there = system.find("/bucket/releases/Mini-GGUF")
    assert "/bucket/releases/Mini-GGUF/manifest.json" in there
    assert not [path for path in there if path.endswith(".part")]
    with pytest.raises(InputError, match="not a place that fsspec knows"):
        publish(dist, Target("nosuch://bucket"))


def test_a_disk_that_fills_leaves_no_manifest_behind(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    put = LocalFileSystem.put_file

    def full(self: Any, local: str, remote: str, **options: Any) -> None:
        if "Q8_0" in local:
            raise OSError(28, "No space left on device")
        put(self, local, remote, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    with pytest.raises(OutputError, match="No space left on device; run the same command again"):
        publish(dist, Target(str(tmp_path / "to")))
    assert not (tmp_path / "to" / "Mini-GGUF" / "manifest.json").exists()
    monkeypatch.undo()
    publish(dist, Target(str(tmp_path / "to")))
    assert check_release(tmp_path / "to" / "Mini-GGUF").passed
