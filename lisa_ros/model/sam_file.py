# SPDX-License-Identifier: Apache-2.0
"""segment-anything's .pth files, such as sam_vit_h_4b8939.pth."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.model.config_inference import infer_sam
from lisa_ros.model.file_checks import check_file
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
    path = Path(path).expanduser()
    check_file(path, 'a SAM .pth file')
    state = load_pickle(path)
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    renamed = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in renamed.items() if key is not None}
