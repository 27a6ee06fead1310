# SPDX-License-Identifier: Apache-2.0
"""segment-anything's .pth files, such as sam_vit_h_4b8939.pth."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError
from lisa_ros.model.config_inference import infer_sam
from lisa_ros.model.key_mapping import map_sam_key
from lisa_ros.model.weight_files import load_pickle


def load_sam_pth(path: str | Path) -> tuple[SamConfig, dict[str, Tensor]]:
    """Read a segment-anything .pth file.

    Returns:
        The config, inferred from the shapes, and the weights under the names of `lisa.Sam`, for
        its load_state_dict.

    Raises:
        CheckpointError: the file is not a SAM, or cannot be read.
    """
    state = load_pickle(sam_path(path))
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    renamed = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in renamed.items() if key is not None}


def sam_path(path: str | Path) -> Path:
    """Return the path of an existing file.

    Raises:
        CheckpointError: there is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file; expected a SAM .pth file')
    return path
