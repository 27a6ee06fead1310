# SPDX-License-Identifier: Apache-2.0
"""Points, boxes and what is refused, on scenes that a few lines of ray casting draw."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import DepthPatch, depth_noise_std, object_surface_mask
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.geometry.oriented_box import box_in_axes, principal_axes
from lisa_ros.geometry.rgbd import depth_to_cloud, depth_to_points, resize_registered_depth
from lisa_ros.geometry.support_plane import fit_support_plane

K = np.array([[100.0, 0, 4], [0, 50, 3], [0, 0, 1]])
SMALL = Camera(K, (8, 6))
KINECT = Camera(np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]), (640, 480))
REAL = os.environ.get('LISA_ROS_REAL_FRAMES')


class Table:
    """A table 0.8 m before a camera that looks down at 45 degrees, and one thing on it.

    World: x right, y away, z up, origin on the table where the camera looks.
    """

    def __init__(self, camera=KINECT, down=45.0):
        self.camera = camera
        angle = np.radians(down)
        ahead = np.array([0, np.cos(angle), -np.sin(angle)])
        right = np.array([1.0, 0, 0])
        self.turn = np.stack([right, np.cross(ahead, right), ahead], axis=1)  # optical to world
        self.eye = -0.8 * ahead
        rays = np.dstack([camera.rays(), np.ones(camera.size[::-1], np.float32)])
        self.rays = rays.astype(np.float64) @ self.turn.T
        self.depth = -self.eye[2] / self.rays[..., 2]
        self.depth[self.depth < 0] = np.nan
        self.mask = np.zeros(self.depth.shape, bool)

    @property
    def up(self):
        return self.turn.T @ [0, 0, 1]

    def into(self, point):
        """A world point in the optical frame."""
        return self.turn.T @ (np.asarray(point) - self.eye)

    def see(self, z):
        """Put a surface at depth z [m], NaN where it is not, before what is there."""
        front = z < np.where(np.isnan(self.depth), np.inf, self.depth)
        self.depth = np.where(front, z, self.depth)
        self.mask |= front

    def box(self, centre, size, yaw):
        cosine, sine = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        eye, rays = (self.eye - centre) @ turn, self.rays @ turn
        with np.errstate(divide='ignore', invalid='ignore'):
            one, other = (-np.array(size) / 2 - eye) / rays, (np.array(size) / 2 - eye) / rays
        enter = np.minimum(one, other).max(axis=-1)
        leave = np.maximum(one, other).min(axis=-1)
        self.see(np.where((enter < leave) & (enter > 0), enter, np.nan))
        return self.turn.T @ turn

    def cylinder(self, middle, radius, low, high, axis=2):
        """A cylinder along a world axis between `low` and `high`; middle on the other two."""
        flat = [i for i in range(3) if i != axis]
        eye, rays = self.eye[flat] - middle, self.rays[..., flat]
        a, b = (rays**2).sum(-1), (rays * eye).sum(-1)
        root = b**2 - a * (eye @ eye - radius**2)
        with np.errstate(invalid='ignore', divide='ignore'):
            shell = (-b - np.sqrt(root)) / a
            along = self.eye[axis] + shell * self.rays[..., axis]
            self.see(np.where((along > low) & (along < high), shell, np.nan))
            for end in (low, high):
                lid = (end - self.eye[axis]) / self.rays[..., axis]
                there = eye + lid[..., None] * rays
                self.see(np.where(((there**2).sum(-1) < radius**2) & (lid > 0), lid, np.nan))

    def measured(self, seed=0):
        """The depth with a Kinect's noise, whole millimetres and mixed pixels at jumps."""
        rng = np.random.default_rng(seed)
        around = np.ones((3, 3), np.uint8)
        near, far = cv2.erode(self.depth, around), cv2.dilate(self.depth, around)
        mixed = (far - near > 0.015) & (rng.random(near.shape) < 0.5)
        z = np.where(mixed, near + rng.random(near.shape) * (far - near), self.depth)
        z = z + depth_noise_std(z) * rng.standard_normal(z.shape)
        return (np.rint(z * 1000) / 1000).astype(np.float32)

    @property
    def picture(self):
        return np.full((*self.mask.shape, 3), 90, np.uint8)

    def thing(self, depth=None, mask=None, up=None):
        depth = self.measured() if depth is None else depth
        mask = self.mask if mask is None else mask
        return localize_object(self.picture, depth, mask, self.camera, up)


def grown(mask, pixels):
    side = 2 * pixels + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)


def degrees(found, truth):
    """The angle between the axes of two boxes, whichever is called which."""
    return np.degrees(np.arccos(np.clip(np.abs(found.T @ truth).max(axis=0), 0, 1))).max()


def sizes(found, truth):
    """The extents of a box in the order of the axes of the truth."""
    return found.extent[np.abs(found.rotation.T @ truth).argmax(axis=0)]


# ---------------------------------------------------------------- camera and scene


def test_rays_times_depth_is_the_scene_and_is_computed_once():
    depth = np.full((6, 8), 2.0, np.float32)
    points = depth_to_points(depth, SMALL)
    assert points.dtype == np.float32
    assert points[5, 6] == pytest.approx([2 / 100 * 2, 2 / 50 * 2, 2])
    assert SMALL.rays().base is Camera(K.copy(), (8, 6)).rays().base
    with pytest.raises(ValueError, match='read-only'):
        SMALL.rays()[0, 0] = 0


@pytest.mark.parametrize('nothing', [0.0, np.nan, np.inf, -1.0])
def test_what_is_no_distance_is_no_point(nothing):
    depth = np.ones((6, 8), np.float32)
    depth[2, 3] = nothing
    points = depth_to_points(depth, SMALL)
    assert np.isnan(points[2, 3]).all()
    assert np.isfinite(points).sum() == 3 * 47


def test_a_cloud_is_xyz_and_the_colour_in_the_bits_of_a_float():
    image = np.zeros((6, 8, 3), np.uint8)
    image[1, 2] = 0x12, 0x34, 0x56
    depth = np.ones((6, 8), np.float32)
    out = np.full((6, 8, 4), 7, np.float32)
    cloud = depth_to_cloud(image, depth, SMALL, out)
    assert cloud is out
    assert cloud[1, 2, 3].view(np.uint32) == 0x00123456
    np.testing.assert_array_equal(cloud[..., :3], depth_to_points(depth, SMALL))


LENSES = {
    'plumb_bob': [0.12, -0.25, 0.001, -0.002, 0.08],
    'rational_polynomial': [0.4, -0.3, 0.0005, -0.0003, 0.05, 0.7, -0.4, 0.02],
    'equidistant': [-0.02, 0.005, -0.003, 0.001],
}


@pytest.mark.parametrize('model', LENSES)
def test_a_lens_is_honoured_as_opencv_projects_it(model):
    lens = np.array(LENSES[model])
    camera = Camera(KINECT.k, KINECT.size, lens, model)
    rays = camera.rays()[::40, ::40].astype(np.float64)
    assert np.isfinite(rays).all()
    ahead = np.dstack([rays, np.ones(rays.shape[:2])]).reshape(-1, 1, 3)
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    pixels = project(ahead, np.zeros(3), np.zeros(3), KINECT.k, lens)[0].reshape(*rays.shape)
    u, v = np.meshgrid(np.arange(0, 640, 40), np.arange(0, 480, 40))
    np.testing.assert_allclose(pixels, np.dstack([u, v]), atol=0.01)
    assert np.abs(rays - KINECT.rays()[::40, ::40]).max() > 0.002


def test_no_distortion_is_a_pinhole_whatever_the_model_is_called():
    for lens, model in (((), 'none'), (np.zeros(5), ''), (np.zeros(4), 'equidistant')):
        np.testing.assert_array_equal(Camera(K, (8, 6), lens, model).rays(), SMALL.rays())


def test_another_model_is_refused_with_the_cure():
    with pytest.raises(ImageError, match=r"'ftheta' is not supported, only plumb_bob.*rectified"):
        Camera(K, (8, 6), np.array([0.1, 0, 0, 0]), 'ftheta').rays()
    with pytest.raises(ImageError, match='with 3 coefficients; expected 4 or 5'):
        Camera(K, (8, 6), np.array([0.1, 0, 0]), 'plumb_bob').rays()


def test_where_the_lens_model_folds_over_there_is_no_ray():
    folds = Camera(KINECT.k, KINECT.size, np.array([-0.9, 0, 0, 0, 0]), 'plumb_bob')
    assert np.isnan(folds.rays()[0, 0]).all()
    assert np.isfinite(folds.rays()[240, 320]).all()


def test_depth_of_half_the_size_falls_on_the_pixels_that_saw_it():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    wide = resize_registered_depth(depth, SMALL)
    assert wide.shape == (6, 8)
    np.testing.assert_array_equal(wide, depth.repeat(2, axis=0).repeat(2, axis=1))
    assert resize_registered_depth(wide, SMALL) is wide


def test_a_scaled_camera_sees_the_same_directions():
    half = SMALL.scaled((4, 3))
    between = (SMALL.rays()[0, 0] + SMALL.rays()[1, 1]) / 2  # the middle of the big pixel
    np.testing.assert_allclose(half.rays()[0, 0], between, atol=1e-6)


def test_depth_that_is_not_registered_is_refused_with_the_cure():
    with pytest.raises(ImageError, match=r'depth is 6 x 6 pixels, the image 8 x 6.*align_depth'):
        resize_registered_depth(np.ones((6, 6), np.float32), SMALL)
    depth = np.ones((6, 8), np.float32)
    with pytest.raises(ImageError, match=r'in frame depth_optical, the image in colour_optical'):
        resize_registered_depth(depth, SMALL, frame='colour_optical', depth_frame='depth_optical')
    other = Camera(K * [[0.8], [0.8], [1]], (8, 6))
    with pytest.raises(ImageError, match=r'the camera of the depth has fx 80.*register'):
        resize_registered_depth(depth, SMALL, depth_camera=other)
    assert resize_registered_depth(depth, SMALL, depth_camera=SMALL.scaled((16, 12))) is depth


# ---------------------------------------------------------------- centroid


def test_the_centroid_is_the_mean_of_the_valid_points():
    depth = np.full((6, 8), 2.0, np.float32)
    mask = np.zeros((6, 8), bool)
    mask[1:6, 1:8] = True
    depth[1, 1] = np.nan
    valid = depth_to_points(depth, SMALL)[mask & np.isfinite(depth)]
    found = localize_object(np.zeros((6, 8, 3), np.uint8), depth, mask, SMALL)
    assert len(found.points) == 34
    assert found.centroid == pytest.approx(valid.mean(axis=0))


def test_no_valid_point_is_none():
    mask = np.ones((6, 8), bool)
    picture = np.zeros((6, 8, 3), np.uint8)
    for depth, some in (
        (np.full((6, 8), np.nan, np.float32), mask),
        (np.zeros((6, 8), np.float32), mask),
        (np.ones((6, 8), np.float32), ~mask),
    ):
        assert localize_object(picture, depth, some, SMALL) is None
        assert fit_support_plane(depth, some, SMALL) is None


def test_sizes_that_differ_are_named():
    mask = np.ones((6, 8), bool)
    small = np.ones((3, 4), np.float32)
    picture = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(ImageError, match=r'depth is 4 x 3 pixels, the image 8 x 6'):
        depth_to_points(small, SMALL)
    with pytest.raises(ImageError, match=r'4 x 3 pixels, the image 8 x 6'):
        localize_object(picture, small, mask, SMALL)


def test_a_single_pixel_is_a_thing_of_one_point_and_little_confidence():
    mask = np.zeros((6, 8), bool)
    mask[5, 6] = True
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[5, 6] = 1, 2, 3
    found = localize_object(picture, np.full((6, 8), 2, np.float32), mask, SMALL)
    np.testing.assert_allclose(found.points, [[0.04, 0.08, 2]])
    assert found.colours.tolist() == [[1, 2, 3]]
    assert found.pixels.tolist() == [[6, 5]]
    assert found.centroid == pytest.approx([0.04, 0.08, 2])
    assert found.nearest == pytest.approx([0.04, 0.08, 2])
    assert found.extent.tolist() == found.box.extent.tolist() == [0, 0, 0]
    assert 0 < found.confidence < 0.2


# ---------------------------------------------------------------- boxes and cans


@pytest.mark.parametrize('known', [True, False], ids=['gravity', 'table'])
@pytest.mark.parametrize('yaw', [0.0, 0.3, 0.8, 1.3])
def test_a_box_is_found_within_3_degrees_and_5_mm(yaw, known):
    table = Table()
    size = np.array([0.12, 0.07, 0.10])
    turn = table.box([0.03, 0.02, 0.05], size, yaw)
    found = table.thing(mask=grown(table.mask, 1), up=table.up if known else None)
    assert degrees(found.box.rotation, turn) < 3
    np.testing.assert_allclose(sizes(found.box, turn), size, atol=0.005)
    np.testing.assert_allclose(found.box.centre, table.into([0.03, 0.02, 0.05]), atol=0.004)
    assert np.linalg.det(found.box.rotation) == pytest.approx(1)
    assert found.box.rotation[:, 2] @ table.up > 0.999


@pytest.mark.parametrize('known', [True, False], ids=['gravity', 'table'])
def test_of_a_can_the_hidden_half_is_known(known):
    table = Table()
    table.cylinder([0.02, 0.05], 0.033, 0.0, 0.12)
    found = table.thing(up=table.up if known else None)
    np.testing.assert_allclose(found.box.extent, [0.066, 0.066, 0.12], atol=0.005)
    np.testing.assert_allclose(found.box.centre, table.into([0.02, 0.05, 0.06]), atol=0.004)
    assert found.box.rotation[:, 2] @ table.up > 0.999


def test_a_lying_can_has_its_axis_level():
    table = Table()
    table.cylinder([0.03, 0.035], 0.035, -0.06, 0.06, axis=0)
    found = table.thing()
    truth = table.turn.T
    assert degrees(found.box.rotation, truth) < 3
    np.testing.assert_allclose(sizes(found.box, truth), [0.12, 0.07, 0.07], atol=0.005)
    np.testing.assert_allclose(found.box.centre, table.into([0, 0.03, 0.035]), atol=0.004)


@pytest.mark.parametrize('pixels', [-1, 0, 1, 2])
def test_the_centroid_is_that_of_the_surface_within_3_mm(pixels):
    table = Table()
    table.box([0, 0, 0.04], [0.1, 0.1, 0.08], 0.5)
    truth = depth_to_points(table.depth.astype(np.float32), table.camera)[table.mask].mean(axis=0)
    mask = grown(table.mask, pixels) if pixels > 0 else ~grown(~table.mask, -pixels)
    assert np.linalg.norm(table.thing(mask=mask).centroid - truth) < 0.003


def test_without_gravity_and_table_the_box_follows_the_principal_axes():
    table = Table()
    table.box([0, 0, 0.05], [0.16, 0.05, 0.1], 0.4)
    alone = np.where(table.mask, table.measured(), np.nan).astype(np.float32)
    found = table.thing(depth=alone)
    np.testing.assert_array_equal(found.box.rotation, found.axes)
    np.testing.assert_array_equal(found.box.extent, found.extent)
    assert np.linalg.det(found.axes) == pytest.approx(1)
    assert (found.axes[np.abs(found.axes).argmax(axis=0), range(3)][:2] > 0).all()
    along = np.degrees(
        np.arccos(np.abs(found.axes[:, 0] @ (table.turn.T @ [np.cos(0.4), np.sin(0.4), 0])))
    )
    assert along < 15  # of the surface that is seen, not of the box


def test_principal_axes_do_not_depend_on_the_order_of_points():
    points = np.random.default_rng(0).normal(size=(500, 3)) * [3, 2, 1]
    np.testing.assert_allclose(principal_axes(points), principal_axes(points[::-1]), atol=1e-9)
    np.testing.assert_allclose(np.abs(principal_axes(points)), np.eye(3), atol=0.15)
    box = box_in_axes(points, np.eye(3))
    assert box.corners().min(axis=0) == pytest.approx(points.min(axis=0))
    assert box.corners().max(axis=0) == pytest.approx(points.max(axis=0))


def test_the_plane_is_the_table():
    table = Table()
    table.box([0, 0, 0.05], [0.1, 0.1, 0.1], 0.2)
    plane = fit_support_plane(table.measured(), table.mask, table.camera)
    assert np.degrees(np.arccos(plane.up @ table.up)) < 0.5
    assert plane.height(table.into([0.1, 0.1, 0.0])) == pytest.approx(0, abs=0.001)
    sideways = table.turn.T @ [1.0, 0, 0]
    assert fit_support_plane(table.measured(), table.mask, table.camera, sideways) is None


# ---------------------------------------------------------------- bleeding


def test_a_mask_that_spills_gives_no_point_off_the_thing():
    table = Table(down=35)
    table.box([0, 0, 0.1], [0.12, 0.06, 0.2], 0.3)
    true = depth_to_points(table.depth.astype(np.float32), table.camera)[table.mask]
    found = table.thing(mask=grown(table.mask, 4))
    away = np.array([np.linalg.norm(true - point, axis=1).min() for point in found.points])
    assert away.max() < 0.03
    assert np.mean(away > 0.005) < 0.01
    assert len(found.points) > 0.95 * len(true)


@pytest.mark.parametrize(('rows', 'stays'), [(10, False), (40, True)])
def test_a_ramp_at_the_edge_goes_and_a_handle_stays(rows, stays):
    """At the mask's edge eight pixels fall away without a jump; ten rows of them are noise."""
    z = np.full((60, 60), 0.8, np.float32)
    z[:, 54:] = np.nan
    z[10 : 10 + rows, 46:54] += np.arange(1, 9, dtype=np.float32) * 0.012
    rays = Camera(KINECT.k, (640, 480)).rays()[200:260, 300:360]
    points = np.concatenate([rays * z[..., None], z[..., None]], axis=-1)
    mask = np.zeros((60, 60), bool)
    mask[4:56, 6:54] = True
    kept = object_surface_mask(DepthPatch(points, mask, (300, 200), 1 / 525), None)
    assert kept[30, 30]
    assert kept[10 : 10 + rows, 52:54].any() == stays


def test_thin_things_stay():
    table = Table()
    table.cylinder([0.0, 0.02], 0.003, -0.1, 0.1, axis=0)  # a pencil that hovers at 2 cm
    depth = (table.depth + 0.0).astype(np.float32)
    found = table.thing(depth=depth)
    assert len(found.points) > 0.9 * table.mask.sum()
    assert found.extent[0] == pytest.approx(0.2, abs=0.006)


def test_both_halves_of_a_hidden_thing_stay():
    table = Table()
    table.box([0, 0.05, 0.05], [0.24, 0.06, 0.1], 0.0)
    behind = table.mask.copy()
    table.mask[:] = False
    table.box([0, -0.1, 0.075], [0.05, 0.05, 0.15], 0.0)
    found = table.thing(mask=behind & ~table.mask)
    assert found.extent[0] == pytest.approx(0.24, abs=0.008)


def test_a_sheet_of_paper_is_not_taken_for_the_table():
    table = Table()
    table.box([0, 0, 0.0005], [0.2, 0.12, 0.001], 0.5)
    found = table.thing()
    assert len(found.points) > 0.9 * table.mask.sum()
    assert found.box.extent[:2].max() == pytest.approx(0.2, abs=0.01)


def test_confidence_is_the_share_that_became_points():
    table = Table()
    table.box([0, 0, 0.05], [0.12, 0.07, 0.10], 0.3)
    whole = table.thing()
    holes = table.measured()
    holes[np.random.default_rng(1).random(holes.shape) < 0.5] = np.nan
    assert whole.confidence > 0.9
    assert table.thing(depth=holes).confidence == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize('share', [0.3, 0.5, 0.7])
def test_a_box_is_finite_however_many_holes_there_are(share):
    table = Table()
    table.box([0, 0, 0.05], [0.12, 0.07, 0.10], 0.3)
    holes = table.measured()
    holes[np.random.default_rng(2).random(holes.shape) < share] = np.nan
    box = table.thing(depth=holes).box
    assert np.isfinite(np.concatenate([box.centre, box.extent])).all()


@pytest.mark.skipif(not REAL, reason='LISA_ROS_REAL_FRAMES names no folder with osd/')
@pytest.mark.parametrize('name', ['learn0', 'learn13', 'learn30', 'test20', 'test40'])
def test_real_things_do_not_bleed(name):
    folder = Path(REAL, 'osd')
    depth = cv2.imread(str(folder / f'{name}_depth.png'), cv2.IMREAD_UNCHANGED) * np.float32(0.001)
    labels = cv2.imread(str(folder / f'{name}_label.png'), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(folder / f'{name}_color.jpg'))[..., ::-1]
    points = depth_to_points(depth, KINECT)
    for number in np.unique(labels[labels >= 2]):
        label = labels == number
        found = localize_object(image, depth, grown(label, 3), KINECT)
        true = points[label & (depth > 0)][::5]
        away = [np.linalg.norm(true - point, axis=1).min() for point in found.points[::7]]
        assert max(away) < 0.03
        assert len(found.points) > 0.9 * (label & (depth > 0)).sum()
