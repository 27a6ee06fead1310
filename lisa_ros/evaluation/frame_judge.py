# SPDX-License-Identifier: Apache-2.0
"""Compare an answer about a frame with the ground truth, and write the answer to disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.evaluation.cases import Case, case_from_result
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.error_overlay import overlay_path, write_error_overlay
from lisa_ros.evaluation.ground_truth import GroundTruth
from lisa_ros.evaluation.result_bag import ResultBag
from lisa_ros.messages.bag import BagImage
from lisa_ros.results import Segmentation


@dataclass(frozen=True)
class FrameJudge:
    """Where ground truth comes from and where answers go; None: nowhere."""

    ground_truth: GroundTruth | None = None
    overlays: Path | None = None  # folder for overlays of the answers' errors
    results: ResultBag | None = None  # an open bag for the answers
    # called for a frame without ground truth; if it returns, the answer is not compared
    on_error: ErrorHandler = raise_error

    def judge(
        self,
        frame: BagImage,
        command: Command,
        result: Segmentation,
        number: int | str | None = None,
    ) -> Case:
        """Return the case of an answer; write its overlay and its messages.

        Args:
            frame: the frame that the answer is about.
            command: the command that it answers.
            result: the answer; without masks their shape does not matter.
            number: of the case within its frame; None: the command's.

        Raises:
            OutputError: a file cannot be written.
            DataError: there is no ground truth for this frame, and `on_error` raised it.
        """
        number = command.number if number is None else number
        result = _with_frame_shape(result, frame)
        if self.results is not None:
            self.results.put(frame, result)
        target = self._target(frame, command)
        overlay = self.overlays and overlay_path(self.overlays, str(frame.stamp), number)
        if overlay:
            write_error_overlay(overlay, frame.pixels, result, target)
        return case_from_result(
            result,
            target,
            group=str(frame.stamp),
            number=number,
            category=command.category,
            expression=command.text,
            image=overlay,
        )

    def _target(self, frame: BagImage, command: Command) -> np.ndarray | None:
        """Return the ground truth (H, W) of a command, None where it is unknown."""
        if self.ground_truth is None or not command.has_ground_truth:
            return None
        try:
            return self.ground_truth.mask(frame.stamp, frame.pixels.shape[:2], command)
        except DataError as error:
            self.on_error(error)
            return None


def _with_frame_shape(result: Segmentation, frame: BagImage) -> Segmentation:
    """Return the result with masks of the frame's size; a message without masks has no size."""
    if result.masks.shape[1:] == frame.pixels.shape[:2]:
        return result
    logits = np.zeros((0, *frame.pixels.shape[:2]), np.float32)
    none = result.scores[:0]
    return replace(result, masks=logits > 0, mask_logits=logits, scores=none, names=())
