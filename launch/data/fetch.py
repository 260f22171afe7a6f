"""Downloading the FineWeb exports that the leaderboard trains and scores on, from the Hugging Face hub.

A fetched folder holds the shards, the byte side-car where the export has one, `tokenizer.model` and `fetch.json`
(source, commit, sha256 of every file). It is gathered beside its name in `.NAME.fetch`: a file moves into `ready`
there once its size and hash are those that the hub states, and the folder takes its name when all are ready. A
connection that breaks is resumed within the file (over HTTP by its offset; Xet, the hub's storage for large files, asks
again for the parts that failed); after a failure the same command goes on with the first file that is not ready (the
hub's client keeps no part of a file between runs). Asking an existing folder for more shards adds them.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import tqdm
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from launch.data.fetch_record import FETCH_RECORD_NAME, FetchedFile, FetchRecord, read_fetch_record
from launch.data.progress import Progress
from model.errors import InputError
from model.text.shards import TOKENIZER_NAME, open_shard

_SPARE_BYTES = 64_000_000  # left free on the disk beyond the files themselves


@dataclass(frozen=True)
class Variant:
    """One published export. Its files lie under `root` of the repository, as its manifest describes."""

    repo_id: str
    dataset: str
    root: str = "datasets"


VARIANTS = {
    "sp1024": Variant("willdepueoai/parameter-golf", "fineweb10B_sp1024"),
    "sp4096": Variant("kevclark/parameter-golf", "fineweb10B_sp4096"),
    "sp8192": Variant("kevclark/parameter-golf", "fineweb10B_sp8192"),
    "caseops8192": Variant("romeerp/parameter-golf-caseops-v1", "fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"),
}


@dataclass(frozen=True)
class _RemoteFile:
    path: str
    size_bytes: int
    sha256: str | None  # None for files outside large-file storage, which the hub knows by their git blob id
    blob_id: str


def fetch_fineweb(
    variant: str,
    out: str | Path,
    *,
    num_shards: int | None = None,
    offline: bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    source: Variant | None = None,
    quiet: bool = False,
) -> FetchRecord:
    """Download `num_shards` training shards (None: all) and the whole validation split of a variant into the folder
    `out`.

    `offline` only checks that `out` already has them. `source` overrides where the variant lies, `endpoint` the hub.
    Returns the folder's record. InputError when the variant, the repository, the network, a hash or the disk's space
    is the trouble.
    """
    out = Path(out)
    if source is None and variant not in VARIANTS:
        raise InputError(f"--variant {variant}: accepted are {', '.join(VARIANTS)}")
    if num_shards is not None and num_shards < 0:
        raise InputError(f"--shards {num_shards}: accepted are 0 and more")
    record = read_fetch_record(out) if out.is_dir() else None
    if out.exists() and record is None and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: already exists and was not fetched from the hub (it has no {FETCH_RECORD_NAME})")
    if record is not None and record.variant != variant:
        raise InputError(f"{out}: holds the variant {record.variant}, not {variant}")
    if offline:
        return _check_offline(out, record, num_shards)
    with _network_errors(variant):
        hub = _Hub(source or VARIANTS[variant], revision, endpoint)
        wanted = hub.plan(num_shards)
        return _download(hub, variant, out, wanted, record, quiet=quiet)


def _download(
    hub: "_Hub", variant: str, out: Path, wanted: dict[str, _RemoteFile], record: FetchRecord | None, *, quiet: bool
) -> FetchRecord:
    """Bring the wanted files, by their names in the folder, to `out`."""
    if record is not None and record.revision != hub.revision:
        raise InputError(
            f"{out}: fetched at commit {record.revision}, the hub is now at {hub.revision}; "
            f"fetch into a new folder, or ask for that revision"
        )
    staging = out.with_name(f".{out.name}.fetch")
    ready = staging / "ready"
    ready.mkdir(parents=True, exist_ok=True)
    staged = read_fetch_record(ready)
    if staged is None or (staged.variant, staged.revision) != (variant, hub.revision):
        shutil.rmtree(ready)
        ready.mkdir()
        staged = FetchRecord(variant, hub.variant.repo_id, hub.revision, {})
    have = {**(record.files if record is not None else {}), **staged.files}
    missing = {name: remote for name, remote in wanted.items() if name not in have or not _is_there(name, out, ready)}
    _check_space(staging, sum(remote.size_bytes for remote in missing.values()))
    with Progress(f"fetch {variant}", sum(r.size_bytes for r in missing.values()), "B", quiet=quiet) as progress:
        for name, remote in missing.items():
            path, sha256 = hub.download(remote, staging / "download", progress)
            if name.endswith(".bin"):
                open_shard(path)
            os.replace(path, ready / name)
            staged.files[name] = FetchedFile(remote.path, remote.size_bytes, sha256)
            staged.write(ready)
    if record is None:
        if out.exists():
            out.rmdir()
        os.replace(ready, out)
        result = staged
    else:
        for name in staged.files:
            os.replace(ready / name, out / name)
        result = FetchRecord(variant, record.repo_id, record.revision, {**record.files, **staged.files})
        result.write(out)
    shutil.rmtree(staging)
    return result


class _Hub:
    """One export at one commit."""

    def __init__(self, variant: Variant, revision: str, endpoint: str | None) -> None:
        self.variant, self._endpoint = variant, endpoint
        self._api = huggingface_hub.HfApi(endpoint=endpoint)
        found = self._api.repo_info(variant.repo_id, repo_type="dataset", revision=revision).sha
        if not found:
            raise InputError(f"{variant.repo_id}: the hub names no commit for revision {revision}")
        self.revision: str = found

    def plan(self, num_shards: int | None) -> dict[str, _RemoteFile]:
        """The files to have, by their names in the data folder: tokenizer, validation, then training in order."""
        variant = self.variant
        manifest_path = f"{variant.root}/manifest.json"
        manifest = _parse_manifest(self._read(manifest_path), f"{variant.repo_id}/{manifest_path}")
        dataset = _named(manifest, "datasets", variant.dataset, variant.repo_id)
        tokenizer = _named(manifest, "tokenizers", dataset.get("tokenizer_name"), variant.repo_id)
        model_path = f"{variant.root}/{tokenizer.get('model_path')}"
        files = self._list(f"{variant.root}/datasets/{variant.dataset}")
        num_train = _count(dataset, "files_train", variant)
        if num_shards is not None and num_shards > num_train:
            raise InputError(f"--shards {num_shards}: {variant.dataset} has {num_train} training shards")
        num_train = num_train if num_shards is None else num_shards
        names = [f"fineweb_val_{number:06d}.bin" for number in range(_count(dataset, "files_val", variant))]
        names += [name for name in sorted(files) if name.startswith("fineweb_val_bytes_")]
        names += [f"fineweb_train_{number:06d}.bin" for number in range(num_train)]
        for name in names:
            if name not in files:
                raise InputError(f"{variant.repo_id}: its manifest counts {name}, which is not in the repository")
        models = self._list(str(Path(model_path).parent))
        if Path(model_path).name not in models:
            raise InputError(f"{variant.repo_id}: its manifest names the tokenizer {model_path}, which is not there")
        return {TOKENIZER_NAME: models[Path(model_path).name], **{name: files[name] for name in names}}

    def download(self, remote: _RemoteFile, folder: Path, progress: Progress) -> tuple[Path, str]:
        """(where the file now lies, its sha256). InputError, and the file removed, if its bytes are not what the hub
        states.
        """

        before = progress.done
        # A cache of its own: the user's trusts what it once got, and a wrong file there could not be fetched anew.
        path = self._bring(remote.path, folder, lambda count: progress.advance(count, Path(remote.path).name))
        progress.advance(before + remote.size_bytes - progress.done)
        sha256, blob_id = _hashes(path)
        where = f"{self.variant.repo_id}/{remote.path}"
        size_bytes = path.stat().st_size
        if size_bytes != remote.size_bytes:
            path.unlink()
            raise InputError(f"{where}: {size_bytes} bytes arrived of {remote.size_bytes}; fetch again")
        if remote.sha256 is not None and sha256 != remote.sha256:
            path.unlink()
            raise InputError(f"{where}: sha256 {sha256} arrived, the hub states {remote.sha256}; fetch again")
        if remote.sha256 is None and blob_id != remote.blob_id:
            path.unlink()
            raise InputError(f"{where}: git blob {blob_id} arrived, the hub states {remote.blob_id}; fetch again")
        return path, sha256

    def _read(self, path: str) -> bytes:
        folder, name = os.path.split(path)
        if name not in self._list(folder):
            raise InputError(f"{self.variant.repo_id}: has no {path}")
        with tempfile.TemporaryDirectory() as scratch:
            return self._bring(path, Path(scratch), lambda count: None).read_bytes()

    def _bring(self, path: str, folder: Path, report: Callable[[int], None]) -> Path:
        """Download a file of the repository below `folder`."""
        try:
            found = huggingface_hub.hf_hub_download(
                self.variant.repo_id,
                path,
                repo_type="dataset",
                revision=self.revision,
                local_dir=folder,
                cache_dir=folder / "cache",
                endpoint=self._endpoint,
                tqdm_class=_bar(report),
            )
        except RuntimeError as error:  # what Xet, the hub's storage for large files, raises when the network fails it
            raise InputError(
                f"{self.variant.repo_id}/{path}: {_one_line(error)}; the same command goes on from here"
            ) from None
        return Path(found)

    def _list(self, folder: str) -> dict[str, _RemoteFile]:
        """Files directly in a folder of the repository, by name."""
        entries = self._api.list_repo_tree(
            self.variant.repo_id, folder, repo_type="dataset", revision=self.revision, recursive=False
        )
        return {
            Path(entry.path).name: _RemoteFile(
                entry.path, entry.size, None if entry.lfs is None else entry.lfs.sha256, entry.blob_id
            )
            for entry in entries
            if isinstance(entry, huggingface_hub.RepoFile)
        }


def _bar(report: Callable[[int], None]) -> type[tqdm.tqdm]:
    """A class for the hub's client to report its bytes to; shows nothing itself."""

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        monitor_interval = 0  # else every class of bars keeps a thread

        def __init__(self, *args: Any, **options: Any) -> None:
            known = {key: options[key] for key in ("total", "initial") if key in options}
            super().__init__(disable=True, **known)

        def update(self, count: float | None = 1) -> None:
            report(int(count or 0))

    return Bar


def _check_offline(out: Path, record: FetchRecord | None, num_shards: int | None) -> FetchRecord:
    if record is None:
        raise InputError(f"{out}: not fetched yet, and --offline was asked for")
    names = list(record.files)
    if num_shards is not None:
        names += [f"fineweb_train_{number:06d}.bin" for number in range(num_shards)]
    for name in names:
        known = record.files.get(name)
        if known is None or not (out / name).is_file() or (out / name).stat().st_size != known.size_bytes:
            raise InputError(f"{out / name}: not fetched completely, and --offline was asked for")
    return record


def _is_there(name: str, out: Path, ready: Path) -> bool:
    return (out / name).is_file() or (ready / name).is_file()


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes and free_bytes < needed_bytes + _SPARE_BYTES:
        raise InputError(
            f"{folder.parent}: {needed_bytes / 1e9:.2f} GB to fetch and {free_bytes / 1e9:.2f} GB free on this disk"
        )


def _parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise InputError(f"{where}: not a manifest")
    return manifest


def _named(manifest: dict[str, Any], kind: str, name: Any, repo_id: str) -> dict[str, Any]:
    for entry in manifest.get(kind, []):
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise InputError(f"{repo_id}: its manifest has no {name} among its {kind}")


def _count(dataset: dict[str, Any], counter: str, variant: Variant) -> int:
    count = (dataset.get("stats") or {}).get(counter)
    if not isinstance(count, int):
        raise InputError(f"{variant.repo_id}: its manifest does not say {counter} of {variant.dataset}")
    return count


def _hashes(path: Path) -> tuple[str, str]:
    """(sha256, git blob id) of a file."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


@contextmanager
def _network_errors(variant: str) -> Iterator[None]:
    """Say in one line what went wrong between us and the hub."""
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HfHubHTTPError) as error:
        raise InputError(f"fetch {variant}: the hub answers: {_one_line(error)}") from None
    except Exception as error:
        # Which library the hub's client speaks HTTP with, and so whose errors come through, changes with its version.
        library = type(error).__module__.partition(".")[0]
        if library not in ("httpx", "httpx2", "requests", "urllib3", "huggingface_hub", "hf_xet"):
            raise
        raise InputError(f"fetch {variant}: {_one_line(error)}; the same command goes on from here") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
