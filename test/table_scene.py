# SPDX-License-Identifier: Apache-2.0
"""A ray-cast table with objects, in the depth of a Kinect, for tests of geometry."""

import cv2
import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.geometry.rgbd import depth_noise_std

KINECT = Camera(np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]), (640, 480))


class Table:
    """A ray-cast scene: a table, and objects on it that share one mask.

    The camera is `distance` metres from the world origin and is pitched down by `down` degrees.
    World frame: x right, y away from the camera, z up, origin where the optical axis meets the
    table.
    """

    def __init__(self, camera=KINECT, down=45.0, distance=0.8):
        self.camera = camera
        angle = np.radians(down)
        forward = np.array([0, np.cos(angle), -np.sin(angle)])
        right = np.array([1.0, 0, 0])
        self.rotation = np.stack([right, np.cross(forward, right), forward], axis=1)  # to world
        self.origin = -distance * forward  # of the camera, in the world frame [m]
        rays = np.dstack([camera.rays(), np.ones(camera.size[::-1], np.float32)])
        self.rays = rays.astype(np.float64) @ self.rotation.T
        self.depth = -self.origin[2] / self.rays[..., 2]
        self.depth[self.depth < 0] = np.nan
        self.mask = np.zeros(self.depth.shape, bool)

    @property
    def up(self):
        return self.rotation.T @ [0, 0, 1]

    def to_camera(self, point):
        """Transform a point from the world frame to the optical frame."""
        return self.rotation.T @ (np.asarray(point) - self.origin)

    def add_surface(self, z):
        """Draw a surface at depth z [m], NaN outside it, where it is nearer than the scene."""
        front = z < np.where(np.isnan(self.depth), np.inf, self.depth)
        self.depth = np.where(front, z, self.depth)
        self.mask |= front

    def add_box(self, centre, size, yaw):
        """Draw a box; return its rotation matrix in the optical frame."""
        cosine, sine = np.cos(yaw), np.sin(yaw)
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        origin, rays = (self.origin - centre) @ rotation, self.rays @ rotation
        half = np.array(size) / 2
        with np.errstate(divide='ignore', invalid='ignore'):
            low, high = (-half - origin) / rays, (half - origin) / rays
        enter = np.minimum(low, high).max(axis=-1)
        leave = np.maximum(low, high).min(axis=-1)
        self.add_surface(np.where((enter < leave) & (enter > 0), enter, np.nan))
        return self.rotation.T @ rotation

    def add_cylinder(self, centre, radius, low, high, axis=2):
        """Draw a cylinder along a world axis from `low` to `high`; `centre` on the other two."""
        others = [i for i in range(3) if i != axis]
        origin, rays = self.origin[others] - centre, self.rays[..., others]
        a, b = (rays**2).sum(-1), (rays * origin).sum(-1)
        root = b**2 - a * (origin @ origin - radius**2)
        with np.errstate(invalid='ignore', divide='ignore'):
            shell = (-b - np.sqrt(root)) / a
            along = self.origin[axis] + shell * self.rays[..., axis]
            self.add_surface(np.where((along > low) & (along < high), shell, np.nan))
            for end in (low, high):
                lid = (end - self.origin[axis]) / self.rays[..., axis]
                offset = origin + lid[..., None] * rays
                self.add_surface(
                    np.where(((offset**2).sum(-1) < radius**2) & (lid > 0), lid, np.nan)
                )

    def noisy_depth(self, seed=0):
        """Return the depth with a Kinect's noise, in whole millimetres, mixed pixels at jumps."""
        rng = np.random.default_rng(seed)
        kernel = np.ones((3, 3), np.uint8)
        near, far = cv2.erode(self.depth, kernel), cv2.dilate(self.depth, kernel)
        mixed = (far - near > 0.015) & (rng.random(near.shape) < 0.5)
        z = np.where(mixed, near + rng.random(near.shape) * (far - near), self.depth)
        z = z + depth_noise_std(z) * rng.standard_normal(z.shape)
        return (np.rint(z * 1000) / 1000).astype(np.float32)

    def add_ball(self, centre, radius):
        """Draw a ball."""
        offset = self.origin - centre
        a, b = (self.rays**2).sum(-1), (self.rays * offset).sum(-1)
        with np.errstate(invalid='ignore'):
            root = np.sqrt(b**2 - a * (offset @ offset - radius**2))
        self.add_surface((-b - root) / a)

    def keep_apart(self):
        """Leave what was drawn so far out of the mask."""
        self.mask[:] = False

    @property
    def image(self):
        return np.full((*self.mask.shape, 3), 90, np.uint8)

    def localize(self, depth=None, mask=None, up=None):
        depth = self.noisy_depth() if depth is None else depth
        mask = self.mask if mask is None else mask
        return localize_object(self.image, depth, mask, self.camera, up)


def registered(table, camera, missing=0.0):
    """Return a table's noisy depth at the pixels of another camera at the same place, with holes.

    As depth_image_proc register does it without fill_upsampling_holes. A part of the values is
    left out.
    """
    z = table.noisy_depth()
    valid = np.isfinite(z)
    rays = np.dstack([table.camera.rays(), np.ones_like(z)])[valid]
    u, v, _ = np.rint(camera.k @ rays.T).astype(int)
    width, height = camera.size
    seen = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    seen &= np.random.default_rng(5).random(seen.shape) >= missing
    depth = np.full((height, width), np.nan, np.float32)
    depth[v[seen], u[seen]] = z[valid][seen]
    return depth


def dilate(mask, pixels):
    side = 2 * pixels + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
