# SPDX-License-Identifier: Apache-2.0
"""File formats of grasp planners: PCD, and the npz of Contact-GraspNet, GPD and AnyGrasp.

docs/grasping.md tells what each planner reads, and where its source says so. Points are metres in
the image's optical frame (REP-103). Letters: N instances, H x W the image [px], M points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.geometry.point_cloud import pack_xyzrgb
from lisa_ros.geometry.rgbd import depth_to_points
from lisa_ros.messages.rgbd import RgbdFrame

NAMES = (
    'contact_graspnet.npz',
    'scene.pcd',
    'object.pcd',
    'scene_without_object.pcd',
    'gpd.npz',
    'anygrasp.npz',
)
_WORKSPACE_MARGIN = 0.03  # round the object, for grasps at its sides [m]
# Pixels at an object's edge that its mask misses would obstruct the gripper: drop this margin [px]
_EDGE_MARGIN = 2


@dataclass(frozen=True, eq=False)
class LabelledCloud:
    """The valid points of an RGB-D image, row by row."""

    points: np.ndarray  # (M, 3) float32 [m]
    colours: np.ndarray  # (M, 3) uint8 RGB
    ids: np.ndarray  # (M,) uint8, number of the instance from 1, 0 of the background
    near_mask: np.ndarray  # (M,) bool, whether the point is in a mask or _EDGE_MARGIN of one


def instance_ids(objects: Sequence[Object3D | None], shape: tuple[int, int]) -> np.ndarray:
    """Return the instance of each pixel's depth, (H, W) uint8: numbers from 1, 0 background.

    A pixel of two instances gets the first one.
    """
    ids = np.zeros(shape, np.uint8)
    for number, located in reversed(list(enumerate(objects, 1))):
        if located is not None:
            u, v = located.pixels.T
            ids[v, u] = number
    return ids


def labelled_cloud(rgbd: RgbdFrame, ids: np.ndarray, masks: np.ndarray) -> LabelledCloud:
    """Return the points of an RGB-D image with their instances.

    Args:
        rgbd: the image with its depth.
        ids: (H, W) uint8, as `instance_ids` returns it.
        masks: (N, H, W) bool.
    """
    points = depth_to_points(rgbd.depth, rgbd.camera)
    valid = np.isfinite(points).all(axis=-1)
    union = masks.any(axis=0).astype(np.uint8)
    side = 2 * _EDGE_MARGIN + 1
    near_mask = cv2.dilate(union, np.ones((side, side), np.uint8)) > 0
    return LabelledCloud(points[valid], rgbd.image[valid], ids[valid], near_mask[valid])


def write_all(
    folder: Path, rgbd: RgbdFrame, objects: Sequence[Object3D | None], masks: np.ndarray
) -> None:
    """Write the files of NAMES.

    Args:
        folder: exists.
        rgbd: the image with its depth.
        objects: N, as `RgbdFrame.localize` returns them.
        masks: (N, H, W) bool of the objects.

    Raises:
        OSError: the folder cannot be written to.
    """
    ids = instance_ids(objects, rgbd.image.shape[:2])
    cloud = labelled_cloud(rgbd, ids, masks)
    is_object = cloud.ids > 0
    is_rest = ~(is_object | cloud.near_mask)
    for name, chosen in (
        ('scene.pcd', np.ones(len(cloud.points), bool)),
        ('object.pcd', is_object),
        ('scene_without_object.pcd', is_rest),
    ):
        write_pcd(folder / name, cloud.points[chosen], cloud.colours[chosen])
    np.savez_compressed(
        folder / 'contact_graspnet.npz',
        # load_available_input_data() takes the array "rgb" for BGR and swaps its channels
        rgb=np.ascontiguousarray(rgbd.image[..., ::-1]),
        depth=np.nan_to_num(rgbd.depth, nan=0.0).astype(np.float32),
        K=np.asarray(rgbd.camera.k, np.float64),
        segmap=ids,
    )
    np.savez_compressed(
        folder / 'gpd.npz',
        samples=cloud.points[is_object].astype(np.float64),
        indices=np.flatnonzero(is_object).astype(np.int64),
        view_points=np.zeros((1, 3)),
    )
    np.savez_compressed(
        folder / 'anygrasp.npz',
        points=cloud.points,
        colors=cloud.colours.astype(np.float32) / 255,
        mask=is_object,
        seg_mask=cloud.ids,
        lims=_workspace_limits(cloud.points[is_object]),
    )


def write_pcd(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Write a binary PCD v0.7 with x, y, z and rgb, as PCL and Open3D read it.

    Args:
        path: of the file.
        points: (M, 3) float32 [m].
        colours: (M, 3) uint8 RGB.

    Raises:
        OSError: the file cannot be written.
    """
    count = len(points)
    header = (
        '# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\n'
        f'SIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH {count}\nHEIGHT 1\n'
        f'VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n'
    )
    path.write_bytes(header.encode('ascii') + pack_xyzrgb(points, colours).astype('<f4').tobytes())


def _workspace_limits(points: np.ndarray) -> np.ndarray:
    """Return xmin, xmax, ymin, ymax, zmin, zmax of (M, 3) points with a margin, (6,) float32."""
    low, high = points.min(axis=0) - _WORKSPACE_MARGIN, points.max(axis=0) + _WORKSPACE_MARGIN
    return np.stack([low, high], axis=1).ravel().astype(np.float32)
