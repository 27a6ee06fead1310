# SPDX-License-Identifier: Apache-2.0
"""Files as grasp planners read them: PCD, and the npz of Contact-GraspNet, GPD and AnyGrasp.

What each of them wants, and where in its sources that is written: docs/grasping.md. Points are
metres in the picture's optical frame (REP-103). Letters: H x W pixels, M points.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lisa_ros.geometry.rgbd import depth_to_points, pack_xyzrgb
from lisa_ros.messages.rgbd import RgbdFrame

NAMES = (
    'contact_graspnet.npz',
    'scene.pcd',
    'object.pcd',
    'scene_without_object.pcd',
    'gpd.npz',
    'anygrasp.npz',
)
_ROOM = 0.03  # round the object, where grasps of it may lie [m]


_RIM = 2  # what masks leave of a thing at its edge would be in the gripper's way [pixels]


@dataclass(frozen=True, eq=False)
class LabelledCloud:
    """The valid points of a picture, row by row."""

    points: np.ndarray  # (M, 3) float32
    colours: np.ndarray  # (M, 3) uint8 RGB
    ids: np.ndarray  # (M,) uint8, 1..254 the instance that it belongs to, 0 none
    masked: np.ndarray  # (M,) bool, whether it lies in a mask or right beside it


def scene_of(space: RgbdFrame, ids: np.ndarray, masks: np.ndarray) -> LabelledCloud:
    """Return the points of a picture.

    Args:
        space: the picture with its depth.
        ids: (H, W) uint8, 1..254 where a pixel's depth is of that instance, 0 elsewhere.
        masks: (N, H, W) bool.
    """
    points = depth_to_points(space.depth, space.camera)
    valid = np.isfinite(points).all(axis=-1)
    together = masks.any(axis=0).astype(np.uint8)
    beside = cv2.dilate(together, np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8)) > 0
    return LabelledCloud(points[valid], space.image[valid], ids[valid], beside[valid])


def write_all(folder: Path, space: RgbdFrame, ids: np.ndarray, scene: LabelledCloud) -> None:
    """Write the files of NAMES; `ids` as `scene_of` takes them.

    Raises:
        OSError: the folder cannot be written to.
    """
    own = scene.ids > 0
    write_pcd(folder / 'scene.pcd', scene.points, scene.colours)
    write_pcd(folder / 'object.pcd', scene.points[own], scene.colours[own])
    rest = ~(own | scene.masked)
    write_pcd(folder / 'scene_without_object.pcd', scene.points[rest], scene.colours[rest])
    np.savez_compressed(
        folder / 'contact_graspnet.npz',
        # load_available_input_data() takes what is called rgb for BGR, and swaps it
        rgb=np.ascontiguousarray(space.image[..., ::-1]),
        depth=np.nan_to_num(space.depth, nan=0.0).astype(np.float32),
        K=np.asarray(space.camera.k, np.float64),
        segmap=ids,
    )
    np.savez_compressed(
        folder / 'gpd.npz',
        samples=scene.points[own].astype(np.float64),
        indices=np.flatnonzero(own).astype(np.int64),
        view_points=np.zeros((1, 3)),
    )
    np.savez_compressed(
        folder / 'anygrasp.npz',
        points=scene.points,
        colors=scene.colours.astype(np.float32) / 255,
        mask=own,
        seg_mask=scene.ids,
        lims=_limits(scene.points[own]),
    )


def write_pcd(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Write a binary PCD v0.7 with x, y, z and rgb, as PCL and Open3D read it.

    Args:
        path: of the file.
        points: (M, 3) float32.
        colours: (M, 3) uint8 RGB.
    """
    count = len(points)
    head = (
        '# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\n'
        f'SIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH {count}\nHEIGHT 1\n'
        f'VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n'
    )
    path.write_bytes(head.encode('ascii') + pack_xyzrgb(points, colours).astype('<f4').tobytes())


def _limits(points: np.ndarray) -> np.ndarray:
    """Return xmin, xmax, ymin, ymax, zmin, zmax round (M, 3) points, with room, (6,) float32."""
    low, high = points.min(axis=0) - _ROOM, points.max(axis=0) + _ROOM
    return np.stack([low, high], axis=1).ravel().astype(np.float32)
