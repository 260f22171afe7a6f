"""`fetch.json`: where the files of a fetched data folder came from, and their hashes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from model.errors import InputError

FETCH_RECORD_NAME = "fetch.json"


@dataclass(frozen=True)
class FetchedFile:
    """One file as the hub states it."""

    remote_path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class FetchRecord:
    """Files by their names in the data folder."""

    variant: str
    repo_id: str
    revision: str
    files: dict[str, FetchedFile]

    def write(self, folder: Path) -> None:
        """Replace the folder's record."""
        temporary = folder / f".{FETCH_RECORD_NAME}.{os.getpid()}.part"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / FETCH_RECORD_NAME)


def read_fetch_record(folder: Path) -> FetchRecord | None:
    """The record of a folder, None if it was not fetched. InputError if it is broken."""
    path = folder / FETCH_RECORD_NAME
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): FetchedFile(**facts) for name, facts in raw["files"].items()}
        return FetchRecord(raw["variant"], raw["repo_id"], raw["revision"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a fetch record ({error!r})") from None
