# SPDX-License-Identifier: Apache-2.0
"""Masks propagated by a video model of transformers: SAM 2 (`sam2`) or EdgeTAM (`edgetam`).

Slower than optical flow, and better if objects turn, are occluded or reappear: the model has a
memory of each object's appearance. It sees the frames one by one, as they arrive. Drift is the
probability that the object is not in the image; it says nothing about the mask's accuracy.

Papers: arxiv.org/abs/2408.00714 (SAM 2), arxiv.org/abs/2501.07256 (EdgeTAM). SAM 2 is in
transformers since 4.56, EdgeTAM since 4.57; their processors, which need torchvision, are not
used. EdgeTAM's released weights need timm for their backbone, and timm needs torchvision.

Letters: N objects, H x W the image, S the side of the model's square input. Threads: not
thread-safe; each tracker belongs to one thread.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EdgeTamVideoModel, PreTrainedConfig, Sam2VideoModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from lisa_ros.error_text import error_summary
from lisa_ros.errors import CheckpointError, ImageError, LisaError, SettingsError
from lisa_ros.model.file_checks import exists
from lisa_ros.model.finite import check_finite
from lisa_ros.model.transformers_folder import check_claims, load_model, read_model_type
from lisa_ros.tracking.tracker import (
    MAX_OPEN_REFERENCES,
    MAX_REFERENCE_AGE,
    TrackingState,
    check_masks,
    unknown_reference,
)

VideoModel = Sam2VideoModel | EdgeTamVideoModel
InferenceSession = Sam2VideoInferenceSession | EdgeTamVideoInferenceSession


class VideoModelClasses(NamedTuple):
    """The transformers classes of a video model, and its model_type in config.json."""

    model_type: str
    model: type[VideoModel]
    session: type[InferenceSession]


MODELS = {
    'sam2': VideoModelClasses('sam2_video', Sam2VideoModel, Sam2VideoInferenceSession),
    'edgetam': VideoModelClasses('edgetam_video', EdgeTamVideoModel, EdgeTamVideoInferenceSession),
}
_IMAGE_MEAN, _IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB 0..1


@dataclass(frozen=True, order=True)
class _BufferedFrame:
    """A frame that the model may still have to process."""

    stamp: int  # [ns]
    pixels: np.ndarray  # (S, S, 3) uint8 RGB


class VideoTracker:
    """A `Tracker` on a video model.

    Until the masks arrive, frames are buffered at the model's size. If the buffer is full, every
    second frame is dropped, which makes objects appear to move faster to the model. `set_masks`
    then processes all buffered frames before it returns. A lost object is tracked again when the
    model finds it. Depth is not used.
    """

    def __init__(
        self, model: VideoModel, session_class: type[InferenceSession], *, max_buffered: int = 32
    ) -> None:
        """Create a tracker without frames.

        Args:
            model: in eval mode, on its device.
            session_class: of the model's inference sessions, see `MODELS`.
            max_buffered: maximum number of frames buffered until masks arrive, at least 4.
        """
        self.model = model
        self._session_class, self._max_buffered = session_class, max(4, max_buffered)
        self._side = int(model.config.image_size)
        # The model uses outputs of this many frames; older outputs would only use memory.
        self._memory = max(model.config.num_maskmem, model.config.max_object_pointers_in_encoder)
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self._size: tuple[int, int] | None = None  # H, W
        self._newest: _BufferedFrame | None = None
        self._open: list[_BufferedFrame] = []  # reference frames without masks, oldest first
        self._buffer: list[_BufferedFrame] = []  # frames after the first of them, oldest first
        self._followed: _BufferedFrame | None = None  # the reference frame of the objects
        self._session: InferenceSession | None = None  # None without objects
        self._index = 0  # of the session's next frame
        self._state: TrackingState | None = None

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """See `Tracker.set_reference`."""
        if self._newest and not 0 <= self._newest.stamp - stamp <= MAX_REFERENCE_AGE:
            self.update(stamp, image, depth)
        if self._newest is None or self._size != image.shape[:2]:
            self._restart(stamp, image)
        if any(frame.stamp == stamp for frame in self._open):
            return
        older = stamp != self._newest.stamp
        if older and not self._open:
            self._buffer.append(self._newest)
        insort(self._open, self._resized(stamp, image) if older else self._newest)
        del self._open[:-MAX_OPEN_REFERENCES]

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """See `Tracker.update`; runs the model if objects are tracked."""
        if self._newest and stamp == self._newest.stamp:
            return
        if self._newest is None or self._size != image.shape[:2] or stamp < self._newest.stamp:
            self._restart(stamp, image)
            return
        self._newest = self._resized(stamp, image)
        if self._open:
            self._buffer.append(self._newest)
            if len(self._buffer) > self._max_buffered:
                del self._buffer[-2::-2]  # every second one, but not the newest
        if self._followed:
            self._state = self._process_or_drop([self._newest])

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """See `Tracker.set_masks`; runs the model on all frames since then.

        Raises:
            TrackingError: no reference frame has this stamp, or its masks were set already.
            ImageError: the masks have another size than that frame.
            ModelError: the model computed NaN or infinity; no masks are tracked then.
        """
        reference = next((frame for frame in self._open if frame.stamp == stamp), None)
        if reference is None:
            raise unknown_reference(stamp, [frame.stamp for frame in self._open])
        check_masks(masks, self._size)
        newer = [frame for frame in self._buffer if frame.stamp > stamp]
        self._open = [frame for frame in self._open if frame.stamp > stamp]
        self._buffer = newer if self._open else []
        self._followed, self._index = reference, 0
        self._session = self._new_session(masks) if len(masks) else None
        self._state = None
        self._state = self._process_or_drop([reference, *newer])

    def state(self) -> TrackingState | None:
        """See `Tracker.state`."""
        return self._state

    def _restart(self, stamp: int, image: np.ndarray) -> None:
        """Start with this frame, without references and objects."""
        self.reset()
        self._size = image.shape[:2]
        self._newest = self._resized(stamp, image)

    def _resized(self, stamp: int, image: np.ndarray) -> _BufferedFrame:
        """Return the frame at the model's size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(
                f'the tracker got an image of shape {image.shape} and type {image.dtype}; '
                'expected (H, W, 3) uint8'
            )
        square = (self._side, self._side)
        return _BufferedFrame(stamp, cv2.resize(image, square, interpolation=cv2.INTER_AREA))

    def _new_session(self, masks: np.ndarray) -> InferenceSession:
        """Return a session with the masks (N, H, W) bool as prompts of its frame 0."""
        device = self.model.device
        session = self._session_class(
            video_height=self._size[0],
            video_width=self._size[1],
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=self.model.dtype,
        )
        for i, mask in enumerate(masks):
            resized = cv2.resize(mask.astype(np.float32), (self._side, self._side))
            prompt = torch.from_numpy((resized >= 0.5).astype(np.float32))[None, None]
            session.add_mask_inputs(session.obj_id_to_idx(i), 0, prompt)  # (1, 1, S, S)
        session.obj_with_new_inputs = list(range(len(masks)))
        return session

    def _process_or_drop(self, frames: Sequence[_BufferedFrame]) -> TrackingState:
        """Run the model on the next frames; return the objects on the last, or drop all."""
        try:
            for frame in frames:
                state = self._process(frame)
        except BaseException:
            self._followed = self._session = self._state = None
            raise
        return state

    @torch.inference_mode()
    def _process(self, frame: _BufferedFrame) -> TrackingState:
        """Run the model on the next frame and return the objects on it.

        Raises:
            ModelError: the model computed NaN or infinity.
        """
        age = (frame.stamp - self._followed.stamp) * 1e-9
        if self._session is None:
            masks, drift = np.zeros((0, *self._size), bool), np.zeros(0, np.float32)
            return TrackingState(frame.stamp, masks, drift.astype(bool), drift, age)
        output = self.model(self._session, frame=self._model_input(frame), frame_idx=self._index)
        self._drop_old_outputs()
        self._index += 1
        logits = F.interpolate(output.pred_masks.float(), self._size, mode='bilinear')[:, 0]
        scores = output.object_score_logits.float().flatten()
        check_finite(logits, 'the tracked masks')
        check_finite(scores, 'the scores of the tracked objects')
        presence = torch.sigmoid(scores).cpu().numpy()  # (N,) probability
        masks = (logits > 0).cpu().numpy()  # (N, H, W)
        tracked = (presence > 0.5) & masks.any(axis=(1, 2))
        masks[~tracked] = False
        drift = np.where(tracked, 1 - presence, 1).astype(np.float32)
        return TrackingState(frame.stamp, masks, tracked, drift, age)

    def _model_input(self, frame: _BufferedFrame) -> Tensor:
        """Return a frame as the model's input, (1, 3, S, S), normalized."""
        pixels = torch.from_numpy(frame.pixels).to(self.model.device).permute(2, 0, 1) / 255
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (_IMAGE_MEAN, _IMAGE_STD))
        return ((pixels - mean) / std)[None].to(self.model.dtype)

    def _drop_old_outputs(self) -> None:
        """Remove outputs that the model no longer looks at; those of frame 0 stay."""
        session, oldest = self._session, self._index - self._memory
        session.processed_frames.clear()
        for i, outputs in session.output_dict_per_obj.items():
            for by_index in (outputs['non_cond_frame_outputs'], session.frames_tracked_per_obj[i]):
                for index in [index for index in by_index if index < oldest]:
                    del by_index[index]


def load_video_tracker(kind: str, model: str | Path, device: str | torch.device) -> VideoTracker:
    """Load a video model from safetensors and return a tracker with it; bf16 on a GPU.

    Args:
        kind: sam2 or edgetam.
        model: folder or hub id, such as facebook/sam2.1-hiera-tiny.
        device: device of the model.

    Raises:
        SettingsError: `kind` is neither sam2 nor edgetam.
        CheckpointError: no such model, a model of another type, or one whose files are damaged.
    """
    if kind not in MODELS:
        raise SettingsError(f'no video tracker {kind!r}; expected {" or ".join(MODELS)}')
    video_model = _load(kind, model, torch.device(device))
    return VideoTracker(video_model, MODELS[kind].session)


def _load(kind: str, model: str | Path, device: torch.device) -> VideoModel:
    """Load a video model; see `load_video_tracker`."""
    classes, folder = MODELS[kind], Path(model).expanduser()
    is_local = exists(folder)
    try:
        if is_local:
            model_type = read_model_type(folder)
        else:
            config, _ = PreTrainedConfig.get_config_dict(str(model))
            model_type = config.get('model_type')
        if model_type != classes.model_type:
            raise CheckpointError(
                f'{model}: config.json names the type {model_type!r}, but the tracker {kind} '
                f'needs {classes.model_type}: use weights in the format of transformers'
            )
        if is_local:
            check_claims(folder)
    except LisaError:
        raise
    except Exception as error:  # the library raises many types for files that do not fit
        raise CheckpointError(
            f'{model} cannot be loaded as {kind} ({error_summary(error)})'
        ) from error
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    source = folder if is_local else model
    video_model = load_model(classes.model, source, kind, dtype, may_download=not is_local)
    return video_model.to(device).eval()
