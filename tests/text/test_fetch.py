import json
import resource
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from launch.data import fetch as fetching
from launch.data.fetch import Variant, fetch_fineweb
from launch.data.verify import verify
from model.errors import InputError
from model.text.shards import DataFolder, shard_header
from tests.text.conftest import VECTORS
from tests.text.hub import Hub

SOURCE = Variant("someone/exports", "fineweb10B_x")
FOLDER = "datasets/datasets/fineweb10B_x"
LAST = f"{FOLDER}/fineweb_train_000002.bin"


def shard(num_tokens: int) -> bytes:
    return shard_header(num_tokens) + (np.arange(num_tokens, dtype="<u2") % 300 + 1).tobytes()


def files() -> dict[str, bytes]:
    manifest = {
        "datasets": [
            {"name": "another", "tokenizer_name": "none"},
            {"name": "fineweb10B_x", "tokenizer_name": "t", "stats": {"files_train": 3, "files_val": 1}},
        ],
        "tokenizers": [{"name": "t", "model_path": "tokenizers/t.model", "vocab_path": "tokenizers/t.vocab"}],
    }
    return {
        "datasets/manifest.json": json.dumps(manifest).encode(),
        "datasets/tokenizers/t.model": (VECTORS / "tokenizers" / "fineweb_8192_bpe.model").read_bytes(),
        f"{FOLDER}/fineweb_train_000000.bin": shard(1000),
        f"{FOLDER}/fineweb_train_000001.bin": shard(2000),
        LAST: shard(60_000),
        f"{FOLDER}/fineweb_val_000000.bin": shard(500),
        f"{FOLDER}/fineweb_val_bytes_000000.bin": shard(500),
        f"{FOLDER}/notes.txt": b"not wanted",
    }


@pytest.fixture
def hub():
    hub = Hub(files())
    server = hub.start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick_client(monkeypatch):
    """Small chunks, so that small files can be cut in the middle; no waiting between attempts."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def fetch(hub: Hub, out: Path, **options: object):
    return fetch_fineweb("x", out, **{"source": SOURCE, "endpoint": hub.url, "quiet": True, **options})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_variant_becomes_a_data_folder(hub, tmp_path):
    out = tmp_path / "out"
    record = fetch(hub, out, num_shards=2)
    train = ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    val = ["fineweb_val_000000.bin", "fineweb_val_bytes_000000.bin"]
    assert names(out) == ["fetch.json", *train, *val, "tokenizer.model"]
    assert names(tmp_path) == ["out"]
    for name, facts in record.files.items():
        assert (out / name).read_bytes() == hub.files[facts.remote_path]
    assert DataFolder.open(out).train.num_tokens == 3000
    assert (record.repo_id, record.revision) == (SOURCE.repo_id, hub.commit)
    assert not hub.downloads("fineweb_train_000002.bin")


def test_hashes_of_a_fetched_folder_are_verified(hub, tmp_path):
    out = tmp_path / "out"
    fetch(hub, out, num_shards=1)
    path = out / "fineweb_train_000000.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match=r"fineweb_train_000000\.bin: sha256 \w+ is not the recorded"):
        verify(out, quiet=True)


def test_more_shards_are_added_and_nothing_fetched_twice(hub, tmp_path):
    out = tmp_path / "out"
    fetch(hub, out, num_shards=1)
    before = len(hub.downloads("fineweb_train_000000.bin"))
    fetch(hub, out)
    assert len(DataFolder.open(out).train_paths) == 3
    assert before == len(hub.downloads("fineweb_train_000000.bin")) == 1
    num_requests = len(hub.requests)
    assert len(fetch(hub, out).files) == 6
    assert not any("/resolve/" in path and "manifest" not in path for _, path, _ in hub.requests[num_requests:])
    (out / "fineweb_train_000001.bin").unlink()
    fetch(hub, out)
    assert DataFolder.open(out).train.num_tokens == 63_000
    assert names(tmp_path) == ["out"]


def test_a_cut_connection_is_resumed_within_the_file(hub, tmp_path):
    hub.cut_after_bytes[LAST] = 50_000
    fetch(hub, tmp_path / "out")
    asked = hub.downloads("fineweb_train_000002.bin")
    assert asked[0] == ""
    assert len(asked) == 2
    assert asked[1] == "bytes=49152-"
    assert (tmp_path / "out" / "fineweb_train_000002.bin").read_bytes() == hub.files[LAST]


def test_after_a_failure_the_same_command_goes_on(hub, tmp_path):
    out = tmp_path / "out"
    hub.cut_after_bytes[LAST] = 50_000
    hub.num_cuts = 1000
    with pytest.raises(InputError, match=r"fetch x: .*the same command goes on from here") as error:
        fetch(hub, out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    hub.num_cuts = 0
    num_requests = len(hub.requests)
    fetch(hub, out)
    again = [path for method, path, _ in hub.requests[num_requests:] if method == "GET" and path.endswith(".bin")]
    assert again == [f"/datasets/{SOURCE.repo_id}/resolve/{hub.commit}/{LAST}"]
    assert (out / "fineweb_train_000002.bin").read_bytes() == hub.files[LAST]
    assert names(tmp_path) == ["out"]


def test_a_failure_of_the_hubs_own_storage_is_one_line_and_resumed(hub, tmp_path, monkeypatch):
    out, download = tmp_path / "out", fetching.huggingface_hub.hf_hub_download

    def fail(repo_id, path, **options):
        if path == LAST:
            raise RuntimeError("Task error: File reconstruction error:\n CAS Client Error")  # as hf_xet 1.8.0 does
        return download(repo_id, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fetching.huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(InputError, match=rf"{LAST}: Task error: .* CAS Client Error; the same command goes on"):
            fetch(hub, out)
    assert not out.exists()
    fetch(hub, out)
    assert len(hub.downloads("fineweb_train_000001.bin")) == 1
    assert (out / "fineweb_train_000002.bin").read_bytes() == hub.files[LAST]


@pytest.mark.parametrize("name", ["fineweb_train_000001.bin", "fineweb_val_000000.bin"])
def test_a_wrong_hash_is_refused_and_the_next_try_fetches_anew(name, hub, tmp_path):
    path = f"{FOLDER}/{name}"
    hub.served_instead[path] = hub.files[path][:-1] + b"\x07"
    out = tmp_path / "out"
    with pytest.raises(InputError, match=rf"{name}: sha256 \w+ arrived, the hub states"):
        fetch(hub, out)
    assert not out.exists()
    hub.served_instead.clear()
    fetch(hub, out)
    assert (out / name).read_bytes() == hub.files[path]
    assert len(hub.downloads(name)) == 2


def test_a_file_that_is_no_shard_is_refused(hub, tmp_path):
    hub.files[LAST] = hub.files[LAST][:-2]
    with pytest.raises(InputError, match="cut short: 60000 tokens"):
        fetch(hub, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_disk_space_is_checked_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=64_000_100)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"GB to fetch and 0\.06 GB free on this disk"):
        fetch(hub, tmp_path / "out")
    assert not any(path.endswith(".bin") for method, path, _ in hub.requests if method == "GET")


def test_a_disk_that_fills_up_is_reported_and_resumed(hub, tmp_path):
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # writing beyond this size fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="File too large"):
            fetch(hub, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not out.exists()
    fetch(hub, out)
    assert (out / "fineweb_train_000002.bin").read_bytes() == hub.files[LAST]


def test_offline_asks_nobody(hub, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="out: not fetched yet, and --offline"):
        fetch(hub, out, offline=True)
    fetch(hub, out, num_shards=2)
    num_requests = len(hub.requests)
    assert len(fetch(hub, out, num_shards=2, offline=True).files) == 5
    with pytest.raises(InputError, match=r"fineweb_train_000002\.bin: not fetched completely, and --offline"):
        fetch(hub, out, num_shards=3, offline=True)
    (out / "fineweb_val_000000.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"fineweb_val_000000\.bin: not fetched completely"):
        fetch(hub, out, offline=True)
    assert len(hub.requests) == num_requests


def test_a_moved_hub_is_not_mixed_with_what_is_there(hub, tmp_path):
    out = tmp_path / "out"
    fetch(hub, out, num_shards=1)
    hub.commit = "f" * 40
    with pytest.raises(InputError, match="fetched at commit 0123456789"):
        fetch(hub, out, num_shards=2)
    assert len(DataFolder.open(out).train_paths) == 1


def test_what_was_staged_from_another_commit_is_thrown_away(hub, tmp_path):
    hub.cut_after_bytes[LAST], hub.num_cuts = 10, 1000
    with pytest.raises(InputError):
        fetch(hub, tmp_path / "out")
    hub.num_cuts, hub.commit = 0, "f" * 40
    assert fetch(hub, tmp_path / "out").revision == "f" * 40
    assert len(hub.downloads("fineweb_train_000000.bin")) == 2


def spoil(hub: Hub, change) -> None:
    manifest = json.loads(hub.files["datasets/manifest.json"])
    change(manifest)
    hub.files["datasets/manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["datasets"].pop(), "its manifest has no fineweb10B_x among its datasets"),
        (lambda m: m["tokenizers"].clear(), "its manifest has no t among its tokenizers"),
        (lambda m: m["datasets"][1].pop("stats"), "does not say files_train of fineweb10B_x"),
        (lambda m: m["datasets"][1]["stats"].update(files_train=4), "counts fineweb_train_000003.bin, which is not"),
        (lambda m: m["tokenizers"][0].update(model_path="tokenizers/u.model"), "names the tokenizer .*u.model"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(change, message, hub, tmp_path):
    spoil(hub, change)
    with pytest.raises(InputError, match=message):
        fetch(hub, tmp_path / "out")


def test_wrong_requests_are_named(hub, tmp_path):
    with pytest.raises(InputError, match="--shards 4: fineweb10B_x has 3 training shards"):
        fetch(hub, tmp_path / "out", num_shards=4)
    with pytest.raises(InputError, match="--shards -1"):
        fetch(hub, tmp_path / "out", num_shards=-1)
    with pytest.raises(InputError, match="--variant sp9: accepted are sp1024, sp4096, sp8192, caseops8192"):
        fetch_fineweb("sp9", tmp_path / "out")
    with pytest.raises(InputError, match="the hub answers: 404"):
        fetch(hub, tmp_path / "out", source=Variant("no/body", "x"))
    with pytest.raises(InputError, match=r"fetch x: .*[Cc]onnect"):
        fetch(hub, tmp_path / "out", endpoint="http://127.0.0.1:1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(InputError, match="mine: already exists and was not fetched"):
        fetch(hub, tmp_path / "mine")
    fetch(hub, tmp_path / "out", num_shards=0)
    with pytest.raises(InputError, match="out: holds the variant x, not sp1024"):
        fetch_fineweb("sp1024", tmp_path / "out")
    (tmp_path / "out" / "fetch.json").write_text("{}")
    with pytest.raises(InputError, match=r"fetch\.json: not a fetch record"):
        fetch(hub, tmp_path / "out")


def test_progress_counts_every_byte(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.data.progress._LINE_INTERVAL_SECONDS", 0.0)
    fetch(hub, tmp_path / "out", quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("fetch x: 100% after")
    assert not any(type(thread).__name__ == "TMonitor" for thread in threading.enumerate())
