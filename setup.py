"""The distribution `albatross`. `pip install .` gives the artifact tools; the extras bring the rest."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ["artifact", "eval", "launch", "model", "trainer"]
EVAL = ["sentencepiece>=0.2", "torch>=2.8", "tqdm"]
TRAIN = [
    *EVAL,
    "deepspeed>=0.19,<0.20",
    "huggingface_hub>=2.4,<3",
    "jsonschema>=4.20",
    "tyro>=1.0",
    "vl-convert-python>=1.9,<2",
]
H100 = ["flash-attn-4", "transformer-engine[pytorch]==2.12.0"]
TRACKERS = ["tensorboard>=2.15", "wandb>=0.17"]
DEV = [
    "grpcio-tools",
    "hypothesis",
    "import-linter",
    "jsonschema",
    "mypy",
    "playwright",
    "pytest",
    "pytest-xdist",
    "ruff",
    "types-protobuf",
]

setup(
    name="albatross",
    version="0.1.0",
    description="Train language models against a byte budget, pack them, and score the file in bits per byte",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=[f"{name}{suffix}" for name in PACKAGES for suffix in ("", ".*")]),
    package_data={"eval": ["*.json"], "launch": ["*.json", "presets/*.toml", "report/page.*"]},
    install_requires=["numpy>=2.0", "protobuf>=6.30", "zstandard>=0.22"],
    extras_require={"eval": EVAL, "train": TRAIN, "h100": H100, "trackers": TRACKERS, "dev": DEV},
    entry_points={"console_scripts": ["albatross = launch.cli:main"]},
)
