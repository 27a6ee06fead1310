# SPDX-License-Identifier: Apache-2.0
"""From pixels to metres: what a mask and its depth say about the thing in space.

Points are in the camera's optical frame (REP-103): x right, y down, z forward. Depth is metres
along z, NaN where invalid, as `conversions.depth_to_metres` gives it (REP-118), on the picture's
own pixels. Letters: H, W rows and columns of the picture, M points. Pure numpy and OpenCV; every
function may be called in any thread.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.boxes import Box, Plane, box_along, principal_axes, standing_box
from lisa_ros.errors import ImageError
from lisa_ros.surfaces import SPECK, View, noise, own_surface, smoothed

MODELS = ('plumb_bob', 'rational_polynomial', 'equidistant')

# ---------------------------------------------------------------- the camera


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with its lens, as sensor_msgs/CameraInfo has it.

    A rectified picture (image_rect) has the K of its P and no distortion.
    """

    k: np.ndarray  # (3, 3) float64 [px], pixel centres at whole numbers
    size: tuple[int, int]  # width, height of the picture that k is for [px]
    distortion: np.ndarray = ()  # (n,) of the model; empty or zeros: none (as image_geometry)
    model: str = ''  # one of MODELS; '' without distortion

    def rays(self) -> np.ndarray:
        """Return x/z and y/z of each pixel, (H, W, 2) float32, read-only, computed once.

        NaN where the lens model has no ray for the pixel.

        Raises:
            ImageError: a distortion of a model that is none of MODELS.
        """
        distortion = np.asarray(self.distortion, np.float64).ravel()
        return _rays(
            np.ascontiguousarray(self.k, np.float64).tobytes(),
            tuple(self.size),
            distortion.tobytes() if distortion.any() else b'',
            self.model,
        )

    def scaled(self, size: tuple[int, int]) -> Camera:
        """Return the camera of the same pictures brought to `size` (width, height)."""
        k = np.array(self.k, np.float64)
        for i in range(2):
            ratio = size[i] / self.size[i]
            k[i, :2] *= ratio
            k[i, 2] = (k[i, 2] + 0.5) * ratio - 0.5
        return Camera(k, tuple(size), self.distortion, self.model)


@functools.lru_cache(maxsize=8)  # colour cameras of one robot; 7 MB each at 1280 x 720
def _rays(k: bytes, size: tuple[int, int], distortion: bytes, model: str) -> np.ndarray:
    """Return x/z and y/z of each pixel, (H, W, 2) float32 and read-only.

    The two lie one after the other in memory, so that arithmetic on one of them is fast.
    """
    intrinsics = np.frombuffer(k).reshape(3, 3)
    lens = np.frombuffer(distortion)
    width, height = size
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    if lens.size:
        rays = _undistorted(np.stack([u, v], axis=-1).reshape(-1, 1, 2), intrinsics, lens, model)
        x, y = rays.T.reshape(2, height, width)
    else:
        x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    planes = np.array([x, y], np.float32)
    planes.setflags(write=False)
    return planes.transpose(1, 2, 0)


def _undistorted(pixels: np.ndarray, k: np.ndarray, lens: np.ndarray, model: str) -> np.ndarray:
    """Return x/z, y/z of (n, 1, 2) pixels; NaN where projecting them does not lead back."""
    counts = {'plumb_bob': (4, 5), 'rational_polynomial': (8, 12, 14), 'equidistant': (4,)}
    if model not in counts:
        raise ImageError(
            f'distortion model {model!r} is not supported, only {", ".join(MODELS)}: give the '
            'rectified picture (image_proc rectify) with the K of its P and no distortion'
        )
    if lens.size not in counts[model]:
        raise ImageError(
            f'distortion model {model} with {lens.size} coefficients; expected '
            f'{" or ".join(map(str, counts[model]))}: correct d in camera_info'
        )
    enough = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
    nowhere = np.zeros(3)
    if model == 'equidistant':
        rays = cv2.fisheye.undistortPoints(pixels, k, lens, criteria=enough)
        back = cv2.fisheye.projectPoints(_ahead(rays), nowhere, nowhere, k, lens)[0]
    else:
        if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4; its undistortPoints stops after five
            rays = cv2.undistortPointsIter(pixels, k, lens, None, None, enough)
        else:
            rays = cv2.undistortPoints(pixels, k, lens, criteria=enough)
        back = cv2.projectPoints(_ahead(rays), nowhere, nowhere, k, lens)[0]
    lost = ~(np.abs(back.reshape(-1, 2) - pixels[:, 0]).max(axis=1) < 0.1)
    rays = rays.reshape(-1, 2)
    rays[lost] = np.nan
    return rays


def _ahead(rays: np.ndarray) -> np.ndarray:
    """Return (n, 1, 2) rays as points at z = 1, (n, 1, 3)."""
    return np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)


def fitted(
    depth: np.ndarray,
    camera: Camera,
    *,
    frame: str = '',
    depth_frame: str = '',
    depth_camera: Camera | None = None,
) -> np.ndarray:
    """Return registered depth on the picture's pixels, (H, W) float32: the nearest, never a mean.

    Args:
        depth: (h, w) float32 metres, of the picture's size or another of the same aspect.
        camera: of the picture.
        frame: frame_id of the picture; '' if unknown.
        depth_frame: frame_id of the depth; '' if unknown.
        depth_camera: what the depth's own camera_info says, if there is one.

    Raises:
        ImageError: the depth is another camera's, or of another aspect.
    """
    height, width = depth.shape
    register = (
        'publish depth registered to the image (RealSense: align_depth.enable:=true; other '
        'drivers: depth_registration, or depth_image_proc register)'
    )
    if frame and depth_frame and frame != depth_frame:
        raise ImageError(f'depth is in frame {depth_frame}, the image in {frame}: {register}')
    if abs(width * camera.size[1] - camera.size[0] * height) > max(height, camera.size[1]):
        raise ImageError(
            f'depth is {width} x {height} pixels, the image {camera.size[0]} x {camera.size[1]}: '
            f'not the same aspect; {register}'
        )
    if depth_camera is not None:
        theirs = np.asarray(depth_camera.scaled(camera.size).k)
        apart = np.abs(theirs - camera.k)[:2]
        if apart.max() > 0.02 * camera.k[0, 0]:
            raise ImageError(
                f'the camera of the depth has fx {theirs[0, 0]:.0f}, cx {theirs[0, 2]:.0f} on '
                f'the image, the image fx {camera.k[0, 0]:.0f}, cx {camera.k[0, 2]:.0f}: '
                f'{register}'
            )
    if (width, height) == tuple(camera.size):
        return depth
    return cv2.resize(depth, tuple(camera.size), interpolation=cv2.INTER_NEAREST_EXACT)


# ---------------------------------------------------------------- the whole scene


def scene_points(depth: np.ndarray, camera: Camera, out: np.ndarray | None = None) -> np.ndarray:
    """Return the point of each pixel, (H, W, 3) float32 metres, NaN where there is none.

    Args:
        depth: (H, W) float32.
        camera: of the same pixels.
        out: where to write, (H, W, 3) or (H, W, 4) float32, so that no frame allocates.

    Raises:
        ImageError: depth and camera differ in size.
    """
    _same_size(depth, camera)
    rays = camera.rays()
    if out is None:
        out = np.empty((*depth.shape, 3), np.float32)
    z = np.where((depth > 0) & (depth < np.inf), depth, np.float32(np.nan))
    np.multiply(rays[..., 0], z, out=out[..., 0])
    np.multiply(rays[..., 1], z, out=out[..., 1])
    out[..., 2] = z
    return out


def scene_cloud(
    image: np.ndarray, depth: np.ndarray, camera: Camera, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the organized, coloured cloud of a picture, (H, W, 4) float32: x, y, z, rgb.

    Its bytes are the data of a sensor_msgs/PointCloud2 with point_step 16, is_dense false and the
    fields x, y, z, rgb (0x00RRGGBB in the bits of a float, as PCL and RViz read it).

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32.
        camera: of the same pixels.
        out: where to write, so that no frame allocates.

    Raises:
        ImageError: image, depth and camera differ in size.
    """
    _same_size(image[..., 0], camera)
    if out is None:
        out = np.empty((*depth.shape, 4), np.float32)
    scene_points(depth, camera, out)
    bytes_ = out.view(np.uint8).reshape(*depth.shape, 16)
    order = slice(14, 11, -1) if sys.byteorder == 'little' else slice(13, 16)
    bytes_[..., order] = image
    bytes_[..., 15 if sys.byteorder == 'little' else 12] = 0
    return out


def _same_size(depth: np.ndarray, camera: Camera) -> None:
    if depth.shape[::-1] != tuple(camera.size):
        raise ImageError(
            f'depth is {depth.shape[1]} x {depth.shape[0]} pixels, the image '
            f'{camera.size[0]} x {camera.size[1]}: publish depth registered to the image'
        )


# ---------------------------------------------------------------- one thing


@dataclass(frozen=True, eq=False)
class Thing:
    """One mask in space."""

    points: np.ndarray  # (M, 3) float32 [m]
    colours: np.ndarray  # (M, 3) uint8 RGB
    pixels: np.ndarray  # (M, 2) int32, u and v of each point
    centroid: np.ndarray  # (3,) float64, mean of the points: of the surface that is seen [m]
    box: Box  # its third axis is up where gravity or a supporting plane is known
    axes: np.ndarray  # (3, 3) float64, columns are the principal axes, the longest first
    extent: np.ndarray  # (3,) float64, sizes of the points along `axes` [m]
    nearest: np.ndarray  # (3,) float32, the point nearest to the camera [m]
    confidence: float  # 0..1, share of the mask that became points, less where they are few


def thing(
    image: np.ndarray,
    depth: np.ndarray,
    mask: np.ndarray,
    camera: Camera,
    up: np.ndarray | None = None,
) -> Thing | None:
    """Return what a mask shows, in space; None if no valid point is left.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity, in the optical frame; None: the plane that it stands on says,
            and without one the box follows the principal axes.

    Raises:
        ImageError: image, depth, mask and camera differ in size.
    """
    for pixels in (image[..., 0], depth, mask):
        _same_size(pixels, camera)
    view = _around(depth, mask, camera)
    if view is None or not view.mask.any():
        return None
    plane = support_plane(depth, mask, camera, up)
    kept = own_surface(view, plane)
    v, u = np.nonzero(kept)
    if not v.size:
        return None
    points = view.points[v, u]
    smooth, normals = (rows[v, u] for rows in smoothed(view, kept))
    upwards = up if up is not None else None if plane is None else plane.up
    if upwards is None:
        box = box_along(points, principal_axes(points))
    else:
        spacing = view.pitch * float(np.median(points[:, 2]))
        floor = _floor_under(points, plane, upwards)
        box = standing_box(points, smooth, normals, upwards, floor, spacing)
    axes = principal_axes(points)
    rows, columns = v + view.corner[1], u + view.corner[0]
    return Thing(
        points=points,
        colours=image[rows, columns],
        pixels=np.stack([columns, rows], axis=1).astype(np.int32),
        centroid=points.mean(axis=0, dtype=np.float64),
        box=box,
        axes=axes,
        extent=box_along(points, axes).extent,
        nearest=points[(points**2).sum(axis=1).argmin()],
        confidence=float(v.size / np.count_nonzero(mask) * v.size / (v.size + SPECK)),
    )


_MARGIN = 4  # pixels of the surroundings that tell a mask's edge from what lies behind


def _around(depth: np.ndarray, mask: np.ndarray, camera: Camera) -> View | None:
    """Return the part of the picture that holds the mask; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    top, left = max(0, rows[0] - _MARGIN), max(0, columns[0] - _MARGIN)
    part = np.s_[top : rows[-1] + 1 + _MARGIN, left : columns[-1] + 1 + _MARGIN]
    z = depth[part]
    z = np.where((z > 0) & (z < np.inf), z, np.float32(np.nan))
    points = np.concatenate([camera.rays()[part] * z[..., None], z[..., None]], axis=-1)
    inside = mask[part] & np.isfinite(points).all(axis=-1)
    return View(points, inside, (int(left), int(top)), float(1 / camera.k[0, 0]))


# ---------------------------------------------------------------- what it stands on


def support_plane(
    depth: np.ndarray, mask: np.ndarray, camera: Camera, up: np.ndarray | None = None
) -> Plane | None:
    """Return the plane that a thing stands on, None if there is none round the mask.

    RANSAC (Fischler and Bolles 1981) on the pixels round the mask, seeded so that the same
    picture gives the same plane. The thing must be above it and begin near it.

    Args:
        depth: (H, W) float32.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity; a plane tilted more than 12 degrees against it is refused.
    """
    _same_size(depth, camera)
    ring, inside = _ring(depth, mask, camera)
    if len(ring) < 100 or not len(inside):
        return None
    rng = np.random.default_rng(0)
    some = ring[rng.choice(len(ring), min(len(ring), 1500), replace=False)].astype(np.float64)
    corners = some[rng.integers(0, len(some), (200, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals, origins = normals[lengths > 1e-7], corners[lengths > 1e-7, 0]
    normals /= lengths[lengths > 1e-7, None]
    offsets = (normals * origins).sum(axis=1)
    turned = np.where(offsets > 0, -1.0, 1.0)  # the camera is above
    normals, offsets = normals * turned[:, None], offsets * turned
    if up is not None:
        level = normals @ (np.asarray(up) / np.linalg.norm(up)) > np.cos(np.radians(12))
        normals, offsets = normals[level], offsets[level]
    if not len(normals):
        return None
    near = np.abs(some @ normals.T - offsets) < 3 * noise(some[:, 2:])
    for best in np.argsort(-near.sum(axis=0))[:20]:
        plane = _refined(Plane(normals[best], float(offsets[best])), some)
        if plane is not None and _carries(plane, inside):
            return plane
    return None


def _ring(depth: np.ndarray, mask: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return valid points round the mask and within it, (M, 3) float32 each, at most some 4000."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)
    reach = max(24, (rows[-1] - rows[0] + columns[-1] - columns[0]) // 4)
    part = np.s_[
        max(0, rows[0] - reach) : rows[-1] + reach,
        max(0, columns[0] - reach) : columns[-1] + reach,
    ]
    z, own = depth[part], mask[part]
    apart = ~cv2.dilate(own.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    rays = camera.rays()[part]
    found = []
    for area in (apart, own):
        v, u = np.nonzero(area & (z > 0) & (z < np.inf) & np.isfinite(rays[..., 0]))
        step = -(-len(v) // 4000) or 1
        v, u = v[::step], u[::step]
        distance = z[v, u, None]
        found.append(np.concatenate([rays[v, u] * distance, distance], axis=1))
    return found[0], found[1]


def _refined(plane: Plane, points: np.ndarray) -> Plane | None:
    """Return the plane by least squares of the (M, 3) points near it; None if they are few."""
    for _ in range(3):
        near = points[np.abs(plane.height(points)) < 3 * noise(points[:, 2])]
        if len(near) < max(50, 0.15 * len(points)):
            return None
        middle = near.mean(axis=0)
        up = np.linalg.eigh((near - middle).T @ (near - middle))[1][:, 0]
        up = up * (-1.0 if up @ middle > 0 else 1.0)
        plane = Plane(up, float(up @ middle))
    return plane


_FOOT = 0.02  # what may be unseen of a thing between its lowest point and what carries it [m]
_HIDDEN = 0.10  # the same where something stands before it: what is up is known all the same [m]


def _carries(plane: Plane, points: np.ndarray) -> bool:
    """Tell whether a thing's (M, 3) points begin near the plane and lie above it."""
    height = plane.height(points)
    begins = float(np.quantile(height, 0.02))
    return bool(-_FOOT < begins < _HIDDEN and np.mean(height > -0.01) > 0.85)


def _floor_under(points: np.ndarray, plane: Plane | None, up: np.ndarray) -> float | None:
    """Return how far along `up` the plane lies below (M, 3) points [m], None if it is not near."""
    if plane is None or np.quantile(plane.height(points), 0.01) > _FOOT:
        return None
    middle = points.mean(axis=0, dtype=np.float64)
    return float(np.asarray(up) @ (middle - plane.height(middle) * plane.up))
