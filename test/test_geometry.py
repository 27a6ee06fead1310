# SPDX-License-Identifier: Apache-2.0
"""Geometry of objects on synthetic scenes: points, boxes and refused input."""

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from table_scene import KINECT, Table, dilate, registered

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import DepthPatch, cell_size, object_surface_mask
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.geometry.oriented_box import box_in_axes, principal_axes
from lisa_ros.geometry.point_cloud import depth_to_cloud
from lisa_ros.geometry.rgbd import depth_to_points, resize_registered_depth
from lisa_ros.geometry.support_plane import fit_support_plane

K = np.array([[100.0, 0, 4], [0, 50, 3], [0, 0, 1]])
SMALL = Camera(K, (8, 6))
REAL = os.environ.get('LISA_ROS_REAL_FRAMES')


def axis_error_deg(rotation, expected):
    """Return the largest angle between matching box axes, in any order and direction."""
    cosines = np.abs(rotation.T @ expected).max(axis=0)
    return np.degrees(np.arccos(np.clip(cosines, 0, 1))).max()


def extents_along(box, axes):
    """Return the extents of a box in the order of the given axes."""
    return box.extent[np.abs(box.rotation.T @ axes).argmax(axis=0)]


# ---------------------------------------------------------------- camera and scene


def test_points_are_rays_times_depth_and_rays_are_cached():
    depth = np.full((6, 8), 2.0, np.float32)
    points = depth_to_points(depth, SMALL)
    assert points.dtype == np.float32
    assert points[5, 6] == pytest.approx([2 / 100 * 2, 2 / 50 * 2, 2])
    assert SMALL.rays().base is Camera(K.copy(), (8, 6)).rays().base
    with pytest.raises(ValueError, match='read-only'):
        SMALL.rays()[0, 0] = 0


@pytest.mark.parametrize('invalid', [0.0, np.nan, np.inf, -1.0])
def test_invalid_depth_gives_no_point(invalid):
    depth = np.ones((6, 8), np.float32)
    depth[2, 3] = invalid
    points = depth_to_points(depth, SMALL)
    assert np.isnan(points[2, 3]).all()
    assert np.isfinite(points).sum() == 3 * 47


def test_a_cloud_has_xyz_and_rgb_packed_into_a_float():
    image = np.zeros((6, 8, 3), np.uint8)
    image[1, 2] = 0x12, 0x34, 0x56
    depth = np.ones((6, 8), np.float32)
    out = np.full((6, 8, 4), 7, np.float32)
    cloud = depth_to_cloud(image, depth, SMALL, out)
    assert cloud is out
    assert cloud[1, 2, 3].view(np.uint32) == 0x00123456
    np.testing.assert_array_equal(cloud[..., :3], depth_to_points(depth, SMALL))


DISTORTIONS = {
    'plumb_bob': [0.12, -0.25, 0.001, -0.002, 0.08],
    'rational_polynomial': [0.4, -0.3, 0.0005, -0.0003, 0.05, 0.7, -0.4, 0.02],
    'equidistant': [-0.02, 0.005, -0.003, 0.001],
}


@pytest.mark.parametrize('model', DISTORTIONS)
def test_distorted_rays_project_back_with_opencv(model):
    distortion = np.array(DISTORTIONS[model])
    camera = Camera(KINECT.k, KINECT.size, distortion, model)
    rays = camera.rays()[::40, ::40].astype(np.float64)
    assert np.isfinite(rays).all()
    directions = np.dstack([rays, np.ones(rays.shape[:2])]).reshape(-1, 1, 3)
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    pixels = project(directions, np.zeros(3), np.zeros(3), KINECT.k, distortion)[0]
    pixels = pixels.reshape(*rays.shape)
    u, v = np.meshgrid(np.arange(0, 640, 40), np.arange(0, 480, 40))
    np.testing.assert_allclose(pixels, np.dstack([u, v]), atol=0.01)
    assert np.abs(rays - KINECT.rays()[::40, ::40]).max() > 0.002


def test_without_coefficients_every_model_is_a_pinhole():
    for distortion, model in (((), 'none'), (np.zeros(5), ''), (np.zeros(4), 'equidistant')):
        np.testing.assert_array_equal(Camera(K, (8, 6), distortion, model).rays(), SMALL.rays())


def test_an_unsupported_distortion_is_refused_with_a_remedy():
    with pytest.raises(
        ImageError, match=r"'ftheta' is not supported; expected one of plumb_bob.*rectified"
    ):
        Camera(K, (8, 6), np.array([0.1, 0, 0, 0]), 'ftheta').rays()
    with pytest.raises(ImageError, match='with 3 coefficients; expected 4 or 5'):
        Camera(K, (8, 6), np.array([0.1, 0, 0]), 'plumb_bob').rays()


PLUMB_BOB, RATIONAL, EQUIDISTANT = DISTORTIONS.values()
PRISM = [0.001, -0.002, 0.001, 0.0005]
SAME_LENSES = [  # as drivers write a lens, and the lens
    ('plumb_bob', [*PLUMB_BOB, 0, 0, 0], 'plumb_bob', PLUMB_BOB),  # OrbbecSDK_ROS2
    ('plumb_bob', [*PLUMB_BOB, *[0] * 9], 'plumb_bob', PLUMB_BOB),
    ('plumb_bob', [*PLUMB_BOB[:4], *[0] * 4], 'plumb_bob', PLUMB_BOB[:4]),
    ('Plumb Bob', PLUMB_BOB, 'plumb_bob', PLUMB_BOB),
    ('PLUMB_BOB', PLUMB_BOB, 'plumb_bob', PLUMB_BOB),
    ('Brown-Conrady', PLUMB_BOB, 'plumb_bob', PLUMB_BOB),
    ('radtan', PLUMB_BOB[:4], 'plumb_bob', PLUMB_BOB[:4]),
    ('rational_polynomial', PLUMB_BOB, 'plumb_bob', PLUMB_BOB),
    ('rational_polynomial', PLUMB_BOB[:4], 'plumb_bob', PLUMB_BOB[:4]),
    (
        'rational_polynomial',
        [*RATIONAL, *[0] * 12],
        'rational_polynomial',
        RATIONAL,
    ),
    ('plumb_bob', RATIONAL, 'rational_polynomial', RATIONAL),  # OrbbecSDK_ROS2: Femto Bolt
    ('plumb_bob', [*RATIONAL, 0, 0, 0, 0], 'rational_polynomial', RATIONAL),
    ('plumb_bob', [*RATIONAL, *PRISM], 'rational_polynomial', [*RATIONAL, *PRISM]),
    ('Brown-Conrady', RATIONAL, 'rational_polynomial', RATIONAL),
    ('fisheye', EQUIDISTANT, 'equidistant', EQUIDISTANT),
    ('fisheye', [*EQUIDISTANT, 0], 'equidistant', EQUIDISTANT),
    ('Kannala Brandt4', EQUIDISTANT, 'equidistant', EQUIDISTANT),
    ('equidistant', [*EQUIDISTANT, 0, 0, 0, 0], 'equidistant', EQUIDISTANT),
]


@pytest.mark.parametrize(('name', 'd', 'model', 'coefficients'), SAME_LENSES)
def test_a_lens_is_the_same_however_its_driver_writes_it(name, d, model, coefficients):
    size = (64, 48)
    camera = Camera(KINECT.k / 10, size, np.array(d), name)
    expected = Camera(KINECT.k / 10, size, np.array(coefficients), model)
    np.testing.assert_allclose(camera.rays(), expected.rays(), atol=1e-7)


@pytest.mark.parametrize('d', [PLUMB_BOB, RATIONAL, [*RATIONAL, *PRISM]])
def test_plumb_bob_of_any_length_has_the_rays_of_opencv(d):
    size = (64, 48)
    rays = Camera(KINECT.k / 10, size, np.array(d), 'plumb_bob').rays()
    u, v = np.meshgrid(np.arange(64.0), np.arange(48.0))
    pixels = np.dstack([u, v]).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
    iterate = getattr(cv2, 'undistortPointsIter', None)  # of OpenCV 4
    k = KINECT.k / 10
    expected = (
        iterate(pixels, k, np.array(d), None, None, criteria)
        if iterate
        else cv2.undistortPoints(pixels, k, np.array(d), criteria=criteria)
    )
    np.testing.assert_allclose(rays, expected.reshape(48, 64, 2), atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'd', 'message'),
    [
        ('plumb_bob', [*PLUMB_BOB, 0.1], 'plumb_bob with 6 coefficients; expected 4 or 5'),
        ('plumb_bob', [*RATIONAL[:7]], 'plumb_bob with 7 coefficients; expected 4 or 5'),
        ('plumb_bob', [*PLUMB_BOB, *[0.1] * 10], 'plumb_bob with 15 coefficients'),
        ('equidistant', [*EQUIDISTANT, 0.1], 'equidistant with 5 coefficients; expected 4'),
        ('equidistant', EQUIDISTANT[:3], 'equidistant with 3 coefficients'),
        ('rational_polynomial', [0.1] * 15, 'with 15 coefficients; expected 8 or 12 or 14'),
        ('', PLUMB_BOB, "distortion model '' is not supported"),
        ('plumb_bob', [math.nan] * 5, 'd in camera_info is .*nan.*; expected numbers'),
        ('plumb_bob', [0.1, math.inf, 0, 0, 0], 'expected numbers'),
    ],
)
def test_a_lens_that_is_not_clear_is_an_error(name, d, message):
    with pytest.raises(ImageError, match=message):
        Camera(K, (8, 6), np.array(d), name).rays()


def test_pixels_that_the_distortion_cannot_reach_have_no_ray():
    camera = Camera(KINECT.k, KINECT.size, np.array([-0.9, 0, 0, 0, 0]), 'plumb_bob')
    assert np.isnan(camera.rays()[0, 0]).all()
    assert np.isfinite(camera.rays()[240, 320]).all()


def test_depth_of_half_the_size_is_repeated_to_the_image_size():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    resized = resize_registered_depth(depth, SMALL)
    assert resized.shape == (6, 8)
    np.testing.assert_array_equal(resized, depth.repeat(2, axis=0).repeat(2, axis=1))
    assert resize_registered_depth(resized, SMALL) is resized


def test_unregistered_depth_is_refused_with_a_remedy():
    with pytest.raises(ImageError, match=r'depth is 6 x 6 pixels, the image 8 x 6.*align_depth'):
        resize_registered_depth(np.ones((6, 6), np.float32), SMALL)
    depth = np.ones((6, 8), np.float32)
    with pytest.raises(ImageError, match=r'in frame depth_optical, the image in colour_optical'):
        resize_registered_depth(depth, SMALL, frame='colour_optical', depth_frame='depth_optical')
    assert resize_registered_depth(depth, SMALL, frame='optical', depth_frame='optical') is depth


@pytest.mark.parametrize(
    ('name', 'error'),
    [
        ('image', 'image is 4 x 3 pixels, its camera has 8 x 6: use the camera_info'),
        ('mask', 'mask is 4 x 3 pixels, its camera has 8 x 6: use the camera_info'),
        ('depth', 'depth is 4 x 3 pixels, the image 8 x 6: publish depth registered'),
    ],
)
def test_the_error_about_a_size_names_what_has_it(name, error):
    arrays = {
        'image': np.zeros((6, 8, 3), np.uint8),
        'depth': np.ones((6, 8), np.float32),
        'mask': np.ones((6, 8), bool),
    }
    arrays[name] = arrays[name][:3, :4]
    with pytest.raises(ImageError, match=error):
        localize_object(**arrays, camera=SMALL)


# ---------------------------------------------------------------- centroid


def test_the_centroid_is_the_mean_of_the_valid_points():
    depth = np.full((6, 8), 2.0, np.float32)
    mask = np.zeros((6, 8), bool)
    mask[1:6, 1:8] = True
    depth[1, 1] = np.nan
    valid = depth_to_points(depth, SMALL)[mask & np.isfinite(depth)]
    located = localize_object(np.zeros((6, 8, 3), np.uint8), depth, mask, SMALL)
    assert len(located.points) == 34
    assert located.centroid == pytest.approx(valid.mean(axis=0))


def test_without_a_valid_point_there_is_no_object_and_no_plane():
    mask = np.ones((6, 8), bool)
    image = np.zeros((6, 8, 3), np.uint8)
    for depth, object_mask in (
        (np.full((6, 8), np.nan, np.float32), mask),
        (np.zeros((6, 8), np.float32), mask),
        (np.ones((6, 8), np.float32), ~mask),
    ):
        assert localize_object(image, depth, object_mask, SMALL) is None
        assert fit_support_plane(depth, object_mask, SMALL) is None


def test_a_size_mismatch_is_reported_with_both_sizes():
    mask = np.ones((6, 8), bool)
    small = np.ones((3, 4), np.float32)
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(ImageError, match=r'depth is 4 x 3 pixels, the image 8 x 6'):
        depth_to_points(small, SMALL)
    with pytest.raises(ImageError, match=r'4 x 3 pixels, the image 8 x 6'):
        localize_object(image, small, mask, SMALL)


def test_a_single_pixel_is_an_object_of_one_point_with_low_confidence():
    mask = np.zeros((6, 8), bool)
    mask[5, 6] = True
    image = np.zeros((6, 8, 3), np.uint8)
    image[5, 6] = 1, 2, 3
    located = localize_object(image, np.full((6, 8), 2, np.float32), mask, SMALL)
    np.testing.assert_allclose(located.points, [[0.04, 0.08, 2]])
    assert located.colours.tolist() == [[1, 2, 3]]
    assert located.pixels.tolist() == [[6, 5]]
    assert located.centroid == pytest.approx([0.04, 0.08, 2])
    assert located.nearest == pytest.approx([0.04, 0.08, 2])
    assert located.extent.tolist() == located.box.extent.tolist() == [0, 0, 0]
    assert 0 < located.confidence < 0.2


# ---------------------------------------------------------------- boxes and cans


@pytest.mark.parametrize('gravity', [True, False], ids=['gravity', 'table'])
@pytest.mark.parametrize('yaw', [0.0, 0.3, 0.8, 1.3])
def test_a_box_is_fitted_within_3_degrees_and_5_mm(yaw, gravity):
    table = Table()
    size = np.array([0.12, 0.07, 0.10])
    rotation = table.add_box([0.03, 0.02, 0.05], size, yaw)
    located = table.localize(mask=dilate(table.mask, 1), up=table.up if gravity else None)
    assert axis_error_deg(located.box.rotation, rotation) < 3
    np.testing.assert_allclose(extents_along(located.box, rotation), size, atol=0.005)
    np.testing.assert_allclose(located.box.centre, table.to_camera([0.03, 0.02, 0.05]), atol=0.004)
    assert np.linalg.det(located.box.rotation) == pytest.approx(1)
    assert located.box.rotation[:, 2] @ table.up > 0.999


@pytest.mark.parametrize('gravity', [True, False], ids=['gravity', 'table'])
def test_the_box_of_a_can_includes_its_hidden_half(gravity):
    table = Table()
    table.add_cylinder([0.02, 0.05], 0.033, 0.0, 0.12)
    located = table.localize(up=table.up if gravity else None)
    np.testing.assert_allclose(located.box.extent, [0.066, 0.066, 0.12], atol=0.005)
    np.testing.assert_allclose(located.box.centre, table.to_camera([0.02, 0.05, 0.06]), atol=0.004)
    assert located.box.rotation[:, 2] @ table.up > 0.999


def test_the_axis_of_a_lying_can_is_horizontal():
    table = Table()
    table.add_cylinder([0.03, 0.035], 0.035, -0.06, 0.06, axis=0)
    located = table.localize()
    axes = table.rotation.T
    assert axis_error_deg(located.box.rotation, axes) < 3
    np.testing.assert_allclose(extents_along(located.box, axes), [0.12, 0.07, 0.07], atol=0.005)
    np.testing.assert_allclose(located.box.centre, table.to_camera([0, 0.03, 0.035]), atol=0.004)


@pytest.mark.parametrize('pixels', [-1, 0, 1, 2])
def test_the_centroid_is_within_3_mm_of_the_visible_surface(pixels):
    table = Table()
    table.add_box([0, 0, 0.04], [0.1, 0.1, 0.08], 0.5)
    surface = depth_to_points(table.depth.astype(np.float32), table.camera)[table.mask]
    mask = dilate(table.mask, pixels) if pixels > 0 else ~dilate(~table.mask, -pixels)
    assert np.linalg.norm(table.localize(mask=mask).centroid - surface.mean(axis=0)) < 0.003


def test_without_gravity_and_table_the_box_has_the_principal_axes():
    table = Table()
    table.add_box([0, 0, 0.05], [0.16, 0.05, 0.1], 0.4)
    object_depth = np.where(table.mask, table.noisy_depth(), np.nan).astype(np.float32)
    located = table.localize(depth=object_depth)
    np.testing.assert_array_equal(located.box.rotation, located.axes)
    np.testing.assert_array_equal(located.box.extent, located.extent)
    assert np.linalg.det(located.axes) == pytest.approx(1)
    assert (located.axes[np.abs(located.axes).argmax(axis=0), range(3)][:2] > 0).all()
    long_side = table.rotation.T @ [np.cos(0.4), np.sin(0.4), 0]
    angle = np.degrees(np.arccos(np.abs(located.axes[:, 0] @ long_side)))
    assert angle < 15  # these are the axes of the visible surface, not of the whole box


def test_principal_axes_do_not_depend_on_the_order_of_points():
    points = np.random.default_rng(0).normal(size=(500, 3)) * [3, 2, 1]
    np.testing.assert_allclose(principal_axes(points), principal_axes(points[::-1]), atol=1e-9)
    np.testing.assert_allclose(np.abs(principal_axes(points)), np.eye(3), atol=0.15)
    box = box_in_axes(points, np.eye(3))
    assert box.corners().min(axis=0) == pytest.approx(points.min(axis=0))
    assert box.corners().max(axis=0) == pytest.approx(points.max(axis=0))


def test_the_support_plane_is_the_table():
    table = Table()
    table.add_box([0, 0, 0.05], [0.1, 0.1, 0.1], 0.2)
    plane = fit_support_plane(table.noisy_depth(), table.mask, table.camera)
    assert np.degrees(np.arccos(plane.up @ table.up)) < 0.5
    assert plane.height(table.to_camera([0.1, 0.1, 0.0])) == pytest.approx(0, abs=0.001)
    sideways = table.rotation.T @ [1.0, 0, 0]
    assert fit_support_plane(table.noisy_depth(), table.mask, table.camera, sideways) is None


# ---------------------------------------------------------------- points beside the object


def test_a_mask_that_is_too_large_gives_no_points_beside_the_object():
    table = Table(down=35)
    table.add_box([0, 0, 0.1], [0.12, 0.06, 0.2], 0.3)
    expected = depth_to_points(table.depth.astype(np.float32), table.camera)[table.mask]
    located = table.localize(mask=dilate(table.mask, 4))
    distances = np.array([np.linalg.norm(expected - p, axis=1).min() for p in located.points])
    assert distances.max() < 0.03
    assert np.mean(distances > 0.005) < 0.01
    assert len(located.points) > 0.95 * len(expected)


@pytest.mark.parametrize(('rows', 'kept'), [(10, False), (40, True)])
def test_a_short_ramp_at_the_edge_is_removed_and_a_handle_is_kept(rows, kept):
    """The depth of the last eight columns rises without a jump; in ten rows only, it is noise."""
    z = np.full((60, 60), 0.8, np.float32)
    z[:, 54:] = np.nan
    z[10 : 10 + rows, 46:54] += np.arange(1, 9, dtype=np.float32) * 0.012
    rays = Camera(KINECT.k, (640, 480)).rays()[200:260, 300:360]
    points = np.concatenate([rays * z[..., None], z[..., None]], axis=-1)
    mask = np.zeros((60, 60), bool)
    mask[4:56, 6:54] = True
    surface = object_surface_mask(DepthPatch(points, mask, (300, 200), 1 / 525), None)
    assert surface[30, 30]
    assert surface[10 : 10 + rows, 52:54].any() == kept


def test_a_thin_object_is_kept():
    table = Table()
    table.add_cylinder([0.0, 0.02], 0.003, -0.1, 0.1, axis=0)  # a pencil 2 cm above the table
    depth = table.depth.astype(np.float32)
    located = table.localize(depth=depth)
    assert len(located.points) > 0.9 * table.mask.sum()
    assert located.extent[0] == pytest.approx(0.2, abs=0.006)


def test_both_parts_of_an_occluded_object_are_kept():
    table = Table()
    table.add_box([0, 0.05, 0.05], [0.24, 0.06, 0.1], 0.0)
    occluded = table.mask.copy()
    table.mask[:] = False
    table.add_box([0, -0.1, 0.075], [0.05, 0.05, 0.15], 0.0)
    located = table.localize(mask=occluded & ~table.mask)
    assert located.extent[0] == pytest.approx(0.24, abs=0.008)


def test_a_sheet_of_paper_is_not_removed_with_the_table():
    table = Table()
    table.add_box([0, 0, 0.0005], [0.2, 0.12, 0.001], 0.5)
    located = table.localize()
    assert len(located.points) > 0.9 * table.mask.sum()
    assert located.box.extent[:2].max() == pytest.approx(0.2, abs=0.01)


def test_confidence_is_the_fraction_of_mask_pixels_that_became_points():
    table = Table()
    table.add_box([0, 0, 0.05], [0.12, 0.07, 0.10], 0.3)
    complete = table.localize()
    depth = table.noisy_depth()
    depth[np.random.default_rng(1).random(depth.shape) < 0.5] = np.nan
    assert complete.confidence > 0.9
    assert table.localize(depth=depth).confidence == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize('fraction', [0.3, 0.5, 0.7])
def test_a_box_is_finite_with_holes_in_the_depth(fraction):
    table = Table()
    table.add_box([0, 0, 0.05], [0.12, 0.07, 0.10], 0.3)
    depth = table.noisy_depth()
    depth[np.random.default_rng(2).random(depth.shape) < fraction] = np.nan
    box = table.localize(depth=depth).box
    assert np.isfinite(np.concatenate([box.centre, box.extent])).all()


# ---------------------------------------------------------------- sparse depth


COLOUR = Camera(np.array([[920.0, 0, 639.5], [0, 920, 359.5], [0, 0, 1]]), (1280, 720))
RATIOS = pytest.mark.parametrize('ratio', [2.17, 3.25, 3.62, 4.31, 5.2])


def sparse_scene(ratio, draw, missing=0.0, **view):
    """Return a table seen by COLOUR, and depth of a focal length shorter by `ratio`."""
    f, width, height = 920 / ratio, round(1280 / ratio), round(720 / ratio)
    k = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])
    table, coarse = Table(COLOUR, **view), Table(Camera(k, (width, height)), **view)
    draw(table)
    draw(coarse)
    return table, registered(coarse, COLOUR, missing)


@RATIOS
@pytest.mark.parametrize('missing', [0.0, 0.3])
def test_sparse_depth_gives_a_box_its_place_and_size(ratio, missing):
    size, centre = np.array([0.12, 0.07, 0.10]), [0.03, 0.02, 0.05]
    table, depth = sparse_scene(ratio, lambda t: t.add_box(centre, size, 0.3), missing)
    located = table.localize(depth=depth)
    valid = table.mask & np.isfinite(depth)
    surface = depth_to_points(table.depth.astype(np.float32), COLOUR)[table.mask]
    assert len(located.points) > 0.85 * np.count_nonzero(valid)
    assert valid[located.pixels[:, 1], located.pixels[:, 0]].all()
    np.testing.assert_array_equal(
        located.points, depth_to_points(depth, COLOUR)[tuple(located.pixels.T[::-1])]
    )
    assert np.linalg.norm(located.centroid - surface.mean(axis=0)) < 0.005
    np.testing.assert_allclose(np.sort(located.box.extent), np.sort(size), atol=0.007)
    np.testing.assert_allclose(located.box.centre, table.to_camera(centre), atol=0.005)


@RATIOS
def test_sparse_depth_shows_the_hidden_half_of_a_can(ratio):
    table, depth = sparse_scene(ratio, lambda t: t.add_cylinder([0.02, 0.05], 0.033, 0, 0.12))
    box = table.localize(depth=depth).box
    np.testing.assert_allclose(box.extent, [0.066, 0.066, 0.12], atol=0.007)
    np.testing.assert_allclose(box.centre, table.to_camera([0.02, 0.05, 0.06]), atol=0.005)


@RATIOS
def test_a_pencil_in_sparse_depth_has_a_place(ratio):
    def draw(table):
        table.add_cylinder([0, 0.02], 0.004, -0.08, 0.08, axis=0)

    table, depth = sparse_scene(ratio, draw)
    located = table.localize(depth=depth)
    assert np.linalg.norm(located.centroid - table.to_camera([0, 0, 0.02])) < 0.008
    assert located.extent[0] == pytest.approx(0.16, abs=0.015)


@RATIOS
def test_a_far_object_in_sparse_depth_has_a_place(ratio):
    def draw(table):
        table.add_box([0, 0, 0.03], [0.06, 0.06, 0.06], 0.2)

    table, depth = sparse_scene(ratio, draw, down=30, distance=3.0)
    located = table.localize(depth=depth)  # some 20 pixels wide and high
    assert np.linalg.norm(located.centroid - table.to_camera([0, 0, 0.03])) < 0.05


def test_a_small_object_in_sparse_depth_has_a_support_plane():
    def draw(table):
        table.add_box([0, 0, 0.0075], [0.015, 0.015, 0.015], 0.2)

    table, depth = sparse_scene(6.5, draw)
    assert fit_support_plane(depth, table.mask, COLOUR) is None
    cell = cell_size(depth, table.mask)
    plane = fit_support_plane(depth, table.mask, COLOUR, cell=cell)
    assert np.degrees(np.arccos(plane.up @ table.up)) < 2


@pytest.mark.parametrize('step', [2, 4, 7])
def test_the_cells_of_sparse_depth_are_larger_than_its_spacing(step):
    depth = np.full((80, 90), np.nan, np.float32)
    depth[::step, ::step] = 1
    assert cell_size(depth, np.ones(depth.shape, bool)) == step + 1


def test_depth_with_holes_and_thin_objects_are_dense():
    depth, mask = np.ones((80, 90), np.float32), np.zeros((80, 90), bool)
    mask[10:70, 10:80] = True
    depth[np.random.default_rng(3).random(depth.shape) < 0.8] = np.nan
    assert cell_size(depth, mask) == 1
    wire = np.where(np.eye(80, 90, dtype=bool), 1, np.nan).astype(np.float32)
    assert cell_size(wire, mask) == 1
    scattered = mask & (np.indices(mask.shape) % 6 == 0).all(axis=0)
    assert cell_size(np.ones_like(depth), scattered) == 1
    assert cell_size(np.full_like(depth, np.nan), mask) == 1


@pytest.mark.parametrize(('count', 'is_found'), [(2, True), (9, False)])
def test_a_tiny_part_of_the_valid_depth_is_no_place(count, is_found):
    """Each valid pixel has another depth; of two, one is half of all."""
    depth, mask = np.zeros((48, 64), np.float32), np.zeros((48, 64), bool)
    mask[10:40, 10:40] = True
    v, u = np.divmod(np.arange(count), 3)
    depth[12 + 9 * v, 12 + 9 * u] = 1 + 0.5 * np.arange(count)
    camera = Camera(np.array([[2000.0, 0, 32], [0, 2000, 24], [0, 0, 1]]), (64, 48))
    located = localize_object(np.zeros((48, 64, 3), np.uint8), depth, mask, camera)
    assert (located is not None) == is_found


@pytest.mark.skipif(not REAL, reason='LISA_ROS_REAL_FRAMES must name a folder with osd/')
@pytest.mark.parametrize('name', ['learn0', 'learn13', 'learn30', 'test20', 'test40'])
def test_real_objects_have_no_points_beside_them(name):
    folder = Path(REAL, 'osd')
    depth = cv2.imread(str(folder / f'{name}_depth.png'), cv2.IMREAD_UNCHANGED) * np.float32(0.001)
    labels = cv2.imread(str(folder / f'{name}_label.png'), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(folder / f'{name}_color.jpg'))[..., ::-1]
    points = depth_to_points(depth, KINECT)
    for label_id in np.unique(labels[labels >= 2]):
        label = labels == label_id
        located = localize_object(image, depth, dilate(label, 3), KINECT)
        expected = points[label & (depth > 0)][::5]
        distances = [np.linalg.norm(expected - p, axis=1).min() for p in located.points[::7]]
        assert max(distances) < 0.03
        assert len(located.points) > 0.9 * (label & (depth > 0)).sum()
