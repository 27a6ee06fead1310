# SPDX-License-Identifier: Apache-2.0
"""Masks carried by a video model of transformers: SAM 2 (`sam2`) or EdgeTAM (`edgetam`).

Slower than optical flow, and better where things turn, are hidden and come back: a model keeps a
memory of how each thing looked. It sees the frames one by one, as they come.

Drift is how unsure the model is that a thing is in the picture at all, not where.

Papers: arxiv.org/abs/2408.00714 (SAM 2), arxiv.org/abs/2501.07256 (EdgeTAM). The classes are those
of transformers (SAM 2 since 4.56, EdgeTAM since 4.57); their processors, which need torchvision,
are not used. EdgeTAM's released weights need timm for their backbone, and timm needs torchvision.

Letters: N things, H x W the picture's pixels, S the model's own square. Threads: not thread-safe,
one tracker belongs to one thread.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import EdgeTamVideoModel, PreTrainedConfig, Sam2VideoModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from lisa_ros.errors import CheckpointError, ImageError, SettingsError
from lisa_ros.tracking.tracker import LATE, TrackingState, check_masks, unknown_frame

MODELS = {  # the model_type in config.json and the classes of transformers, by the tracker's name
    'sam2': ('sam2_video', Sam2VideoModel, Sam2VideoInferenceSession),
    'edgetam': ('edgetam_video', EdgeTamVideoModel, EdgeTamVideoInferenceSession),
}
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB 0..1
_OPEN = 4  # questions that may be open; of more, the oldest is forgotten


@dataclass(frozen=True, order=True)
class _BufferedFrame:
    """A frame that may still have to be looked at."""

    stamp: int  # [ns]
    pixels: np.ndarray  # (S, S, 3) uint8 RGB


class VideoTracker:
    """A `tracking.Tracker` on a video model.

    Until the answer comes, frames are only kept, shrunk to the model's size, `kept` at most: when
    there are more, every other one is left out, which the model sees as a faster movement.
    `answered` then looks at all of them, one after the other, before it returns. A lost thing is
    found again when the model says that it is there. Depth is not used.
    """

    def __init__(self, model: torch.nn.Module, new_session: Any, *, kept: int = 32) -> None:
        """Make a tracker that has seen nothing.

        Args:
            model: a Sam2VideoModel or EdgeTamVideoModel, in eval mode on its device.
            new_session: the class of that model's inference sessions.
            kept: frames that are kept for an answer that is still to come, 4 or more.
        """
        self._model, self._new_session, self._kept = model, new_session, max(4, kept)
        self._side = int(model.config.image_size)
        # The model looks back no farther; older outputs would only take memory.
        self._memory = max(model.config.num_maskmem, model.config.max_object_pointers_in_encoder)
        self.reset()

    def reset(self) -> None:
        """Forget frames, questions and things."""
        self._size: tuple[int, int] | None = None
        self._newest: _BufferedFrame | None = None
        self._open: list[_BufferedFrame] = []  # frames that were asked about, oldest first
        self._since: list[_BufferedFrame] = []  # frames after the oldest of them, oldest first
        self._begun: _BufferedFrame | None = None  # the frame of the answer that is followed
        self._session: Any = None  # None where the answer has no masks
        self._index = 0  # of the last frame that the session has seen
        self._now: TrackingState | None = None

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """See `tracking.Tracker.begin`."""
        if self._newest and not 0 <= self._newest.stamp - stamp <= LATE:
            self.update(stamp, image, depth)
        if self._newest is None or self._size != image.shape[:2]:
            self._start(stamp, image)
        if any(one.stamp == stamp for one in self._open):
            return
        late = stamp != self._newest.stamp  # asked about a frame that is not the newest any more
        if late and not self._open:
            self._since.append(self._newest)
        insort(self._open, self._read(stamp, image) if late else self._newest)
        del self._open[:-_OPEN]

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """See `tracking.Tracker.advance`; runs the model if something is followed."""
        if self._newest and stamp == self._newest.stamp:
            return
        if self._newest is None or self._size != image.shape[:2] or stamp < self._newest.stamp:
            self._start(stamp, image)
            return
        self._newest = self._read(stamp, image)
        if self._open:
            self._since.append(self._newest)
            if len(self._since) > self._kept:
                del self._since[-2::-2]  # the newest one stays
        if self._begun:
            self._now = self._look(self._newest)

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """See `tracking.Tracker.answered`; looks at all frames since, before it returns.

        Raises:
            TrackingError: no frame of this stamp is asked about and waits for an answer.
            ImageError: the masks have another size than that frame.
        """
        begun = next((one for one in self._open if one.stamp == stamp), None)
        if begun is None:
            raise unknown_frame(stamp, [one.stamp for one in self._open])
        check_masks(masks, self._size)
        frames = [one for one in self._since if one.stamp > stamp]
        self._open = [one for one in self._open if one.stamp > stamp]
        self._since = frames if self._open else []
        self._begun, self._index = begun, 0
        self._session = self._prompted(masks) if len(masks) else None
        for frame in [begun, *frames]:
            self._now = self._look(frame)

    def state(self) -> TrackingState | None:
        """See `tracking.Tracker.now`. The arrays are not to be changed."""
        return self._now

    def _start(self, stamp: int, image: np.ndarray) -> None:
        """Begin with this frame, knowing nothing of others."""
        self.reset()
        self._size = image.shape[:2]
        self._newest = self._read(stamp, image)

    def _read(self, stamp: int, image: np.ndarray) -> _BufferedFrame:
        """Return the frame at the model's size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(
                f'a picture of the shape {image.shape} and type {image.dtype}: what is followed '
                'is (H, W, 3) uint8'
            )
        square = (self._side, self._side)
        return _BufferedFrame(stamp, cv2.resize(image, square, interpolation=cv2.INTER_AREA))

    def _prompted(self, masks: np.ndarray) -> Any:
        """Return a new session that knows the masks (N, H, W) bool of its frame 0."""
        device = self._model.device
        session = self._new_session(
            video_height=self._size[0],
            video_width=self._size[1],
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=self._model.dtype,
        )
        for i, mask in enumerate(masks):
            grey = cv2.resize(mask.astype(np.float32), (self._side, self._side))
            prompt = torch.from_numpy((grey >= 0.5).astype(np.float32))[None, None]
            session.add_mask_inputs(session.obj_id_to_idx(i), 0, prompt)  # (1, 1, S, S)
        session.obj_with_new_inputs = list(range(len(masks)))
        return session

    @torch.inference_mode()
    def _look(self, frame: _BufferedFrame) -> TrackingState:
        """Let the model look at the next frame, and return where the things are on it."""
        age = (frame.stamp - self._begun.stamp) * 1e-9
        if self._session is None:
            none = np.zeros(0, np.float32)
            return TrackingState(
                frame.stamp, np.zeros((0, *self._size), bool), none.astype(bool), none, age
            )
        out = self._model(self._session, frame=self._pixels(frame), frame_idx=self._index)
        self._forget_old()
        self._index += 1
        logits = F.interpolate(out.pred_masks.float(), self._size, mode='bilinear')[:, 0]
        here = torch.sigmoid(out.object_score_logits.float().flatten()).cpu().numpy()  # (N,)
        masks = (logits > 0).cpu().numpy()  # (N, H, W)
        tracked = (here > 0.5) & masks.any(axis=(1, 2))
        masks[~tracked] = False
        drift = np.where(tracked, 1 - here, 1).astype(np.float32)
        return TrackingState(frame.stamp, masks, tracked, drift, age)

    def _pixels(self, frame: _BufferedFrame) -> Tensor:
        """Return a frame as the model wants it, (1, 3, S, S)."""
        pixels = torch.from_numpy(frame.pixels).to(self._model.device).permute(2, 0, 1) / 255
        mean, spread = (pixels.new_tensor(v)[:, None, None] for v in (_MEAN, _SPREAD))
        return ((pixels - mean) / spread)[None].to(self._model.dtype)

    def _forget_old(self) -> None:
        """Take from the session what the model does not look back at; the first frame's stays."""
        session, oldest = self._session, self._index - self._memory
        session.processed_frames.clear()
        for i, outputs in session.output_dict_per_obj.items():
            for kept in (outputs['non_cond_frame_outputs'], session.frames_tracked_per_obj[i]):
                for index in [one for one in kept if one < oldest]:
                    del kept[index]


def load_video_tracker(kind: str, model: str | Path, device: str | torch.device) -> VideoTracker:
    """Load a video model from safetensors and return a tracker on it; bf16 on a GPU.

    Args:
        kind: sam2 or edgetam.
        model: folder or hub id, such as facebook/sam2.1-hiera-tiny.
        device: where it runs.

    Raises:
        SettingsError: the kind is none of them.
        CheckpointError: there is no such model, or it is of another kind.
    """
    if kind not in MODELS:
        raise SettingsError(f'no video tracker {kind!r}: take {" or ".join(MODELS)}')
    model_type, model_class, new_session = MODELS[kind]
    device = torch.device(device)
    try:
        plain, _ = PreTrainedConfig.get_config_dict(str(model))
        found = plain.get('model_type')
        if found != model_type:
            raise CheckpointError(
                f'{model}: config.json names the type {found!r}, but the tracker {kind} needs '
                f'{model_type}: take the weights in the layout of transformers'
            )
        loaded = model_class.from_pretrained(
            str(model),
            dtype=torch.bfloat16 if device.type == 'cuda' else torch.float32,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise CheckpointError(f'{model} cannot be loaded as {kind}: {error}') from error
    return VideoTracker(loaded.to(device).eval(), new_session)
