"""A hub id read by ranges: the same answer as from the folder, and no weight is fetched.

The server speaks the hub's protocol on loopback, honours Range, and counts bytes by file.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantize.fit.subject import read_subject
from quantize.job import quantize
from tests.convert.test_hub import COMMIT, REPO, Handler, Hub, command
from tests.miniature import Shape, write_checkpoint


class Ranges(Handler):
    """The hub of the other tests, which also serves parts of files and their sizes."""

    served: dict[str, int]
    refuses_ranges = False

    def reply(self, code: int, body: bytes, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and code == 200:
            if self.refuses_ranges:
                self.missing("EntryNotFound")
                return
            first, size = int(wanted[1]), len(body)
            last = min(int(wanted[2] or size - 1), size - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
            code, body = 206, body[first : last + 1]
        if "/resolve/" in self.path and self.command == "GET":
            self.served[self.path.rpartition("/")[2]] += len(body)
        super().reply(code, body, **headers)

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPO}":
            body = json.dumps(self.hub.info(COMMIT)).encode()
            self.reply(200, body, Content_Type="application/json")
            return
        found = re.fullmatch(rf"/{REPO}/resolve/[^/]+/(.+)", path)
        if found and not (self.hub.folders[COMMIT] / found[1]).is_file():
            self.missing("EntryNotFound")
            return
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        """Sizes of the paths that are asked for."""
        length = int(self.headers["Content-Length"])
        text = self.rfile.read(length).decode()
        entries = {entry["path"]: entry for entry in self.hub.tree(COMMIT)}
        found = [entry for path, entry in entries.items() if path in text]
        self.reply(200, json.dumps(found).encode(), Content_Type="application/json")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    servers = []

    def start(folder: Path, **settings: Any) -> tuple[Hub, dict[str, int]]:
        hub, served = Hub({COMMIT: folder}), defaultdict[str, int](int)
        handler = type("Bound", (Ranges,), {"hub": hub, "served": served, **settings})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return hub, served

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(hidden=512, intermediate=1024, layers=4)
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "Mini-Hermes", shape=shape, shards=2)


def asked(home: Path, hub: Hub, *options: str) -> Any:
    done = command(home, hub.url, "fit", REPO, "--gpu", "RTX 4090", "--context", "1k", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_checkpoint_on_the_hub_is_planned_to_the_byte(
    serve: Any, tmp_path: Path, checkpoint: Path
) -> None:
    hub, served = serve(checkpoint)
    found = asked(tmp_path / "home", hub, "--json")
    local = {(c.target, c.container): c for c in read_subject(str(checkpoint)).candidates}
    for answer in found["answers"]:
        kind = "gguf" if answer["engine"] == "llama.cpp" else "safetensors"
        if answer["make_command"] is not None and kind == "gguf":
            # the header names the repository, which the folder does not know
            near = local[answer["target"], kind].size_bytes
            assert answer["size_is_exact"]
            assert 0 <= answer["size_bytes"] - near < 512
        if answer["make_command"] is not None and kind == "safetensors":
            assert answer["size_bytes"] == local[answer["target"], kind].size_bytes
    weights = {p.name: p.stat().st_size for p in checkpoint.glob("*.safetensors")}
    assert len(weights) == 2
    for name, size in weights.items():
        assert 0 < served[name] <= 100_001 < size / 10


def test_what_is_planned_from_headers_is_what_is_made_from_the_download(
    serve: Any, tmp_path: Path, checkpoint: Path
) -> None:
    hub, _ = serve(checkpoint)
    found = asked(tmp_path / "home", hub, "--to", "Q4_K_M", "--to", "Q8_0", "--json")
    sizes = {a["target"]: a["size_bytes"] for a in found["answers"] if a["make_command"]}
    more = ("--out", tmp_path / "out", "--to", "Q4_K_M", "--to", "Q8_0")
    done = command(tmp_path / "home", hub.url, "quantize", REPO, *more)
    assert done.returncode == 0, done.stderr
    made = {p.stem.rpartition("-")[2]: p.stat().st_size for p in (tmp_path / "out").glob("*.gguf")}
    assert made == sizes


def test_gguf_files_on_the_hub_by_their_headers(
    serve: Any, tmp_path: Path, checkpoint: Path
) -> None:
    folder = tmp_path / "repository"
    quantize(str(checkpoint), folder, ["Q8_0", "F16"], name="Mini")
    for sidecar in folder.glob("*.json"):
        sidecar.unlink()
    big = folder / "Mini-F16.gguf"
    hub, served = serve(folder)
    found = asked(tmp_path / "home", hub, "--json")
    local = {c.name: c for c in read_subject(str(folder)).candidates}
    assert {a["artifact"]: a["size_bytes"] for a in found["answers"]} == {
        name: c.size_bytes for name, c in local.items()
    }
    assert served[big.name] <= 1 << 20 < big.stat().st_size / 4
    (command_line,) = {a["command"] for a in found["answers"] if a["artifact"] == "Mini-Q8_0"}
    assert f"-hf {REPO} -hff Mini-Q8_0.gguf" in command_line


@pytest.mark.parametrize("reference", ["acme/None", f"{REPO}@v9"])
def test_a_repository_that_is_not_there(serve: Any, tmp_path: Path, reference: str) -> None:
    (tmp_path / "empty").mkdir()
    hub, _ = serve(tmp_path / "empty")
    done = command(tmp_path / "home", hub.url, "fit", reference, "--gpu", "RTX 4090")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_a_repository_of_neither(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "pytorch_model.bin").write_bytes(b"x")
    hub, _ = serve(tmp_path / "r")
    done = command(tmp_path / "home", hub.url, "fit", REPO, "--gpu", "RTX 4090")
    assert done.returncode == 2
    assert "neither" in done.stderr or "no safetensors and no GGUF" in done.stderr


def test_a_header_that_lies_is_refused(serve: Any, tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes((1 << 60).to_bytes(8, "little") + shard.read_bytes()[8:])
    hub, _ = serve(folder)
    done = command(tmp_path / "home", hub.url, "fit", REPO, "--gpu", "RTX 4090")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no readable safetensors headers" in done.stderr


def test_a_server_that_breaks_off_ends_in_one_line(
    serve: Any, tmp_path: Path, checkpoint: Path
) -> None:
    hub, _ = serve(checkpoint, refuses_ranges=True)
    done = command(tmp_path / "home", hub.url, "fit", REPO, "--gpu", "RTX 4090")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be fetched from the hub" in done.stderr
