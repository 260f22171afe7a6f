"""`albatross submission`: the challenge's folder, with no figure in it that its artifacts do not reproduce.

Every artifact is scored again, by the evaluator in a process of its own, before anything is written.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from artifact.reader import Artifact, read
from launch import exit_codes
from launch.arguments import CAP_BYTES
from launch.report.comparison import hardware, sides
from launch.report.recorded import Run, load_runs
from launch.run_folder import RunFolder
from model.errors import InputError

TOLERANCE_BPB = 1e-4
"""Between a report and the same artifact scored again: other kernels of the same device differ by less."""
RECORD_SECONDS = 600.0
MODE_OF_SECTION = {"post_quantization": "plain", "post_quantization_sliding": "sliding", "post_ttt": "ttt"}


@dataclass(frozen=True)
class Entry:
    """One seed's run, with the section of its report that is handed in."""

    run: Run
    artifact: Artifact
    section: Mapping[str, Any]
    reproduced_bpb: float

    @property
    def seed(self) -> int:
        return int(self.run.setting("training", "seed"))

    @property
    def train_seconds(self) -> float:
        return float(self.run.report.get("pre_quantization", {}).get("train_seconds", 0.0))


def submit(options: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the folder `options.out`. Returns exit code 0.

    Raises:
        InputError: the folder exists; runs of different settings, of the same seed, or without a complete and legal
            score; a report that its artifact does not bear out; a field that the schema refuses.
    """
    if options.out.exists():
        raise InputError(f"{options.out}: exists already; choose another --out")
    runs = load_runs(options.runs)
    if len(sides(runs)) > 1:
        raise InputError("the runs differ in more than their seed; a submission is one set of settings")
    section = common_section(runs)
    entries = [check(run, section, options.data, options.device) for run in runs]
    if len({entry.seed for entry in entries}) < len(entries):
        raise InputError("two of the runs have the same training.seed")
    fields = submission_fields(entries, section, options)
    validate(fields)
    write_folder(entries, fields, options.out)
    print(f"{options.out}: val_bpb {fields['val_bpb']:.6f} over {len(entries)} seeds, reproduced from the artifacts")
    return exit_codes.OK


def common_section(runs: Sequence[Run]) -> str:
    """The furthest section of the report that all runs have complete."""

    def complete(run: Run, name: str) -> bool:
        entry = run.report.get(name, {})
        return entry.get("bpb") is not None and not entry.get("partial", True)

    for name in reversed(MODE_OF_SECTION):
        if all(complete(run, name) for run in runs):
            return name
    raise InputError("the runs have no complete evaluation in common (albatross evaluate --report RUN_DIR/report.json)")


def check(run: Run, section: str, data: Path | None, device: str | None) -> Entry:
    """A run's artifact against its report: the same file, within the cap, legal, and the same score once more."""
    folder = RunFolder(run.path)
    if not folder.artifact.is_file():
        raise InputError(f"{run.path}: holds no {folder.artifact.name} (albatross pack)")
    artifact, entry = read(folder.artifact), run.report[section]
    claims = {
        "artifact_sha256": artifact.sha256,
        "artifact_bytes": artifact.total_bytes,
        "code_bytes": len(artifact.code),
        "tokenizer_sha256": artifact.tokenizer_sha256,
    }
    for name, value in claims.items():
        if entry.get(name) != value:
            raise InputError(f"{folder.report}: {section}.{name} is {entry.get(name)}, but that of the file is {value}")
    if artifact.total_bytes > CAP_BYTES:
        raise InputError(f"{folder.artifact}: has {artifact.total_bytes:,} bytes, the cap is {CAP_BYTES:,}")
    if not entry.get("legal", False):
        raise InputError(f"{folder.report}: {section} is not legal: it adapted on text before scoring it")
    again = score_again(folder, entry, data or Path(folder.recorded_data()["path"]), device)
    if again.get("data_sha256") != entry.get("data_sha256"):
        raise InputError(f"{folder.report}: {section} was scored on other validation data than is there now (--data)")
    if again.get("partial", True) or abs(again["bpb"] - entry["bpb"]) > TOLERANCE_BPB:
        raise InputError(
            f"{folder.report}: {section}.bpb is {entry['bpb']:.6f}, but the artifact scores {again['bpb']:.6f}"
        )
    return Entry(run, artifact, entry, again["bpb"])


def score_again(folder: RunFolder, entry: Mapping[str, Any], data: Path, device: str | None) -> dict[str, Any]:
    """The section of a report that the evaluator makes of the artifact now, with the settings of `entry`."""
    mode = entry["mode"]
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        command = [sys.executable, "-m", "eval", str(folder.artifact), "--data", str(data), "--mode", mode]
        command += ["--report", str(report), "--dtype", entry["activation_dtype"]]
        if tokenizer := folder.recorded_data().get("tokenizer_path"):
            command += ["--tokenizer", tokenizer]
        if device is not None:
            command += ["--device", device]
        for name, value in entry.get("overrides", {}).items():
            command += [f"--eval.{name}", value]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == exit_codes.INPUT_WRONG:
            raise InputError(done.stderr.strip().removeprefix("albatross: error: "))
        if done.returncode != 0:
            raise RuntimeError(f"the evaluator failed:\n{done.stderr}")
        written: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    section = next(name for name, each in MODE_OF_SECTION.items() if each == mode)
    return dict(written[section])


def submission_fields(entries: Sequence[Entry], section: str, options: argparse.Namespace) -> dict[str, Any]:
    """The contents of submission.json."""
    bpb = [float(entry.section["bpb"]) for entry in entries]
    largest = max(entries, key=lambda entry: entry.artifact.total_bytes).artifact
    on_eight = all(len(entry.run.environment.get("gpus") or []) == 8 for entry in entries)
    in_time = all(0 < entry.train_seconds <= RECORD_SECONDS + 1 for entry in entries)
    spread = {"val_bpb_std": statistics.stdev(bpb)} if len(bpb) > 1 else {}
    return {
        "author": options.author,
        "github_id": options.github_id,
        "name": options.name,
        "blurb": options.blurb,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "val_loss": statistics.fmean(float(entry.section["val_loss_nats"]) for entry in entries),
        "val_bpb": statistics.fmean(bpb),
        **spread,
        "bytes_total": largest.total_bytes,
        "bytes_code": len(largest.code),
        "bytes_model": largest.total_bytes - len(largest.code),
        "track": "10min_16mb" if on_eight and in_time else "non_record_16mb",
        "hardware": hardware(entries[0].run) or "unknown",
        "seeds": [entry.seed for entry in entries],
        "seed_results": {
            str(entry.seed): {
                "val_bpb": entry.section["bpb"],
                "reproduced_bpb": entry.reproduced_bpb,
                "val_loss": entry.section["val_loss_nats"],
                "artifact_bytes": entry.artifact.total_bytes,
                "artifact_sha256": entry.artifact.sha256,
                "train_seconds": entry.train_seconds,
                "num_steps": int(entry.run.report.get("pre_quantization", {}).get("num_steps", 0)),
                "eval_seconds": entry.section["seconds"],
            }
            for entry in entries
        },
        "section": section,
        "tokenizer_sha256": entries[0].artifact.tokenizer_sha256,
        "data_sha256": entries[0].section["data_sha256"],
        "lossless": entries[0].section["lossless"],
        "ledger": entries[0].section["ledger"],
    }


def validate(fields: Mapping[str, Any]) -> None:
    """InputError naming the field that launch/submission.schema.json refuses."""
    import jsonschema

    schema = json.loads(resources.files("launch").joinpath("submission.schema.json").read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(fields))
    if error is not None:
        raise InputError(f"submission.json: {'.'.join(map(str, error.absolute_path)) or 'fields'}: {error.message}")


def write_folder(entries: Sequence[Entry], fields: Mapping[str, Any], out: Path) -> None:
    """The whole folder or, if anything fails, none of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        (folder / "submission.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "README.md").write_text(readme(fields), "utf-8")
        for entry in entries:
            source, name = RunFolder(entry.run.path), f"seed{entry.seed}"
            shutil.copyfile(source.artifact, folder / f"{name}.albatross")
            for path, kind in ((source.log, "log"), (source.config, "toml"), (source.report, "json")):
                if path.is_file():
                    shutil.copyfile(path, folder / f"{name}.{kind}")
        with tarfile.open(fileobj=io.BytesIO(entries[0].artifact.code), mode="r:*") as code:
            code.extractall(folder / "code", filter="data")
        folder.rename(out)


def readme(fields: Mapping[str, Any]) -> str:
    """README.md of the folder: the figures, and how to get them again."""
    rows = "\n".join(
        f"| {seed} | {result['val_bpb']:.6f} | {result['reproduced_bpb']:.6f} | {result['artifact_bytes']:,} | "
        f"{result['num_steps']:,} | {result['train_seconds']:.0f} | {result['eval_seconds']:.0f} |"
        for seed, result in fields["seed_results"].items()
    )
    seed, mode = fields["seeds"][0], MODE_OF_SECTION[fields["section"]]
    spread = f" (standard deviation {fields['val_bpb_std']:.6f})" if "val_bpb_std" in fields else ""
    lossless = {True: "lossless", False: "changes text", None: "not known to be lossless"}[fields["lossless"]]
    return f"""# {fields["name"]}

{fields["blurb"]}

**val_bpb {fields["val_bpb"]:.6f}**{spread}, {mode} scoring, {fields["bytes_total"]:,} bytes with
{fields["bytes_code"]:,} bytes of code, trained on {fields["hardware"]}.

| seed | val_bpb | scored again | artifact bytes | steps | training s | evaluation s |
|---|---|---|---|---|---|---|
{rows}

Byte ledger: {fields["ledger"]}; tokenizer: {lossless}. Each artifact holds the code that scores it, also under code/:

    cd code && python -m eval ../seed{seed}.albatross --data DATA_FOLDER --mode {mode}

`seed{seed}.toml` is the preset that trained it: `albatross train seed{seed}.toml --data DATA_FOLDER --out RUN_DIR`.
"""
