"""Calibration for packing: the trained network run over text on this machine's GPU, or its CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launch.preset import Settings
from launch.run_folder import RunFolder
from model.errors import InputError
from model.text.shards import DataFolder


def run_calibration(
    folder: RunFolder,
    settings: Settings,
    weights: Mapping[str, np.ndarray],
    data: Path | None,
    log: Callable[[str], None],
) -> Any:
    """The `trainer.quantize.calibration.Calibration` that the quantization settings ask for; None if none.

    Args:
        data: the data folder; None: the one that the run was trained on.

    Raises:
        InputError: the training tokens are needed and are not there, too few, or of another tokenizer.
    """
    quantization = settings.quantization
    if not quantization.needs_hessians:
        return None
    import torch

    from model.network import gpt
    from trainer.quantize.calibrate import calibrate
    from trainer.ranks import Ranks

    stream = None
    if quantization.calibration.source == "training":
        recorded = folder.recorded_data()
        path = data or Path(recorded["path"])
        if not path.is_dir():
            raise InputError(
                f"{path}: no such data folder; calibration reads training tokens (name a folder with --data)"
            )
        stream = DataFolder.open(path).train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = gpt.load(settings.model, weights, device=device, activation_dtype=dtype)
    try:
        return calibrate(model, quantization, stream, Ranks(0, 1, device), log)
    except ValueError as error:
        raise InputError(str(error)) from None
