# SPDX-License-Identifier: Apache-2.0
"""The lower end of a box: of an object that stands, hangs, or is partly out of sight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from table_scene import KINECT, Table, dilate, registered

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.oriented_box import fit_upright_box
from lisa_ros.geometry.support_plane import Floor
from lisa_ros.perception.masks import touches_edge

GRAVITY = pytest.mark.parametrize('gravity', [True, False], ids=['gravity', 'table'])
INPUTS = pytest.mark.parametrize(  # by how much the mask is too wide
    ('gravity', 'pixels'), [(True, 0), (True, 2), (False, 1)]
)


def tilted(degrees, camera=KINECT):
    """Return a table seen by a camera that is tilted this far from straight down."""
    return Table(camera, down=90 - degrees)


def vertical_range(table, *, gravity=True, pixels=0):
    """Return where the box of the masked object begins and ends above the table [m]."""
    mask = dilate(table.mask, pixels) if pixels else table.mask
    box = table.localize(mask=mask, up=table.up if gravity else None).box
    assert box.rotation[:, 2] @ table.up > 0.999
    heights = (box.corners() @ table.rotation.T + table.origin)[:, 2]
    return heights.min(), heights.max()


# ---------------------------------------------------------------- standing


@INPUTS
@pytest.mark.parametrize('tilt', [0, 10, 30, 60])
@pytest.mark.parametrize('height', [0.01, 0.021, 0.05, 0.1, 0.15, 0.25])
def test_the_box_of_a_standing_object_reaches_from_the_table_to_its_top(
    height, tilt, gravity, pixels
):
    table = tilted(tilt)
    table.add_box([0.02, 0, height / 2], [0.1, 0.08, height], 0.3)
    low, high = vertical_range(table, gravity=gravity, pixels=pixels)
    assert low == pytest.approx(0, abs=0.003)
    assert high == pytest.approx(height, abs=0.003)


@GRAVITY
@pytest.mark.parametrize('tilt', [0, 10, 30])
def test_a_can_and_a_mug_with_a_handle_stand_on_the_table(tilt, gravity):
    table = tilted(tilt)
    table.add_cylinder([0, 0], 0.033, 0, 0.12)
    assert vertical_range(table, gravity=gravity) == pytest.approx((0, 0.12), abs=0.004)
    table.add_box([0.05, 0, 0.07], [0.04, 0.012, 0.06], 0)
    assert vertical_range(table, gravity=gravity) == pytest.approx((0, 0.12), abs=0.004)


@pytest.mark.parametrize('tilt', [0, 10, 30, 60])
def test_a_ball_and_a_lying_can_stand_on_the_table(tilt):
    ball, can = tilted(tilt), tilted(tilt)
    ball.add_ball([0, 0, 0.04], 0.04)
    can.add_cylinder([0, 0.035], 0.035, -0.06, 0.06, axis=0)
    assert vertical_range(ball) == pytest.approx((0, 0.08), abs=0.005)
    assert vertical_range(can) == pytest.approx((0, 0.07), abs=0.005)


def test_an_object_below_a_lens_with_distortion_stands_on_the_table():
    camera = Camera(KINECT.k, KINECT.size, np.array([0.12, -0.25, 0, 0, 0.08]), 'plumb_bob')
    table = tilted(0, camera)
    table.add_box([0.1, 0.05, 0.04], [0.1, 0.08, 0.08], 0.3)
    assert vertical_range(table) == pytest.approx((0, 0.08), abs=0.003)


@pytest.mark.parametrize('length', [0.97, 1.0, 3.0])
def test_the_length_of_the_up_vector_does_not_matter(length):
    table = tilted(45)
    table.add_box([0, 0, 0.0075], [0.1, 0.08, 0.015], 0.3)
    box, expected = table.localize(up=length * table.up).box, table.localize(up=table.up).box
    np.testing.assert_allclose(box.extent, expected.extent, atol=1e-6)
    np.testing.assert_allclose(box.centre, expected.centre, atol=1e-6)


@GRAVITY
@pytest.mark.parametrize('tilt', [0, 30])
def test_the_box_of_a_standing_object_reaches_the_table_in_sparse_depth(tilt, gravity):
    f = 525 / 4.3
    coarse = Camera(np.array([[f, 0, 79.5], [0, f, 59.5], [0, 0, 1]]), (160, 120))
    table, seen = tilted(tilt), tilted(tilt, coarse)
    for scene in (table, seen):
        scene.add_box([0.02, 0, 0.05], [0.1, 0.08, 0.1], 0.3)
    depth = registered(seen, KINECT)
    box = table.localize(depth=depth, up=table.up if gravity else None).box
    heights = (box.corners() @ table.rotation.T + table.origin)[:, 2]
    assert heights.min() == pytest.approx(0, abs=0.006)
    assert heights.max() == pytest.approx(0.1, abs=0.006)


# ---------------------------------------------------------------- in the air


@INPUTS
@pytest.mark.parametrize('tilt', [30, 60])
@pytest.mark.parametrize('gap', [0.03, 0.05, 0.08])
@pytest.mark.parametrize('size', [(0.1, 0.08, 0.05), (0.1, 0.08, 0.1), (0.03, 0.2, 0.03)])
def test_the_box_of_an_object_in_the_air_with_visible_sides_ends_above_the_table(
    size, gap, tilt, gravity, pixels
):
    table = tilted(tilt)
    table.add_box([0, 0, gap + size[2] / 2], size, 0.3)
    low, high = vertical_range(table, gravity=gravity, pixels=pixels)
    assert gap - 0.004 < low < high
    assert high == pytest.approx(gap + size[2], abs=0.004)


@pytest.mark.parametrize('tilt', [20, 45])
def test_a_pencil_and_a_plate_in_the_air_end_above_the_table(tilt):
    pencil, plate = tilted(tilt), tilted(tilt)
    pencil.add_cylinder([0, 0.06], 0.004, -0.08, 0.08, axis=0)
    plate.add_box([0, 0, 0.085], [0.2, 0.2, 0.01], 0.3)
    assert vertical_range(pencil)[0] > 0.045
    assert vertical_range(plate)[0] > 0.075


@GRAVITY
@pytest.mark.parametrize(('down', 'distance'), [(10, 1.5), (15, 1.5), (20, 1.2)])
@pytest.mark.parametrize('gap', [0.08, 0.15])
def test_an_object_in_the_air_that_shows_only_its_front_ends_above_the_table(
    gap, down, distance, gravity
):
    """Its top is above the camera: the visible surface is a thin line, as seen from above."""
    table = Table(down=down, distance=distance)
    height = table.origin[2] + 0.03 - gap
    table.add_box([0, 0, gap + height / 2], [0.3, 0.2, height], 0)
    assert not touches_edge(table.mask)
    up = table.up if gravity else None
    heights = (table.localize(up=up).box.corners() @ table.rotation.T + table.origin)[:, 2]
    assert heights.min() > gap - 0.02


@pytest.mark.parametrize('tilt', [30, 45])
def test_an_object_in_the_air_that_the_top_of_the_image_cuts_ends_above_the_table(tilt):
    table = tilted(tilt)
    table.add_box([0, 0.1, 0.55], [0.15, 0.1, 0.5], 0)
    assert table.mask[0].any()
    assert vertical_range(table)[0] > 0.28


@pytest.mark.parametrize('missing', [0, 3], ids=['to the border', 'almost to the border'])
@pytest.mark.parametrize('tilt', [0, 5, 10])
def test_an_object_in_the_air_that_the_side_of_the_image_cuts_ends_above_the_table(tilt, missing):
    table = tilted(tilt)
    table.add_box([0.4, 0, 0.24], [0.1, 0.1, 0.08], 0)
    assert table.mask[:, -1].any()
    table.mask[:, table.mask.shape[1] - missing :] = False
    assert vertical_range(table)[0] > 0.19


def test_straight_from_above_an_object_in_the_air_counts_as_standing_unless_it_is_round():
    """Nothing tells it from a higher one; a cylinder's lower half follows from the circle."""
    box, can = tilted(0), tilted(0)
    box.add_box([0, 0, 0.075], [0.1, 0.08, 0.05], 0.3)
    can.add_cylinder([0, 0.085], 0.035, -0.06, 0.06, axis=0)
    assert vertical_range(box) == pytest.approx((0, 0.1), abs=0.003)
    assert vertical_range(can) == pytest.approx((0.05, 0.12), abs=0.005)


def test_far_above_the_floor_an_object_has_no_floor():
    table = tilted(0)
    table.add_box([0, 0, 0.45], [0.05, 0.05, 0.1], 0.3)  # like a gripper's
    located = table.localize(up=table.up)
    assert located.box.extent.min() < 0.02
    assert located.box.centre == pytest.approx(table.to_camera([0, 0, 0.5]), abs=0.01)


# ---------------------------------------------------------------- partly out of sight


def test_a_part_that_another_object_hides_is_not_estimated():
    table = tilted(45)
    table.add_box([0, 0.05, 0.08], [0.1, 0.06, 0.16], 0)
    behind = table.mask.copy()
    table.keep_apart()
    table.add_box([0, -0.04, 0.05], [0.2, 0.06, 0.1], 0)
    table.mask = behind & ~table.mask
    low, high = vertical_range(table)
    assert low > 0.03
    assert high == pytest.approx(0.16, abs=0.004)


def test_an_object_on_a_book_begins_at_the_book():
    table = tilted(45)
    table.add_box([0, 0, 0.015], [0.11, 0.11, 0.03], 0)  # small: the table is around both
    table.keep_apart()
    table.add_box([0, 0, 0.07], [0.08, 0.08, 0.08], 0)
    low, high = vertical_range(table)
    assert low == pytest.approx(0.03, abs=0.006)
    assert high == pytest.approx(0.11, abs=0.004)


def test_a_part_below_the_edge_of_the_image_is_not_estimated():
    table = tilted(45)
    table.add_box([0, -0.34, 0.1], [0.1, 0.08, 0.2], 0)
    assert table.mask[-1].any()
    low, high = vertical_range(table)
    assert low > 0.03
    assert high == pytest.approx(0.2, abs=0.004)


def test_without_gravity_a_wall_behind_an_object_is_no_floor():
    table = tilted(80)
    table.add_box([0, 0.35, 0.5], [4, 0.1, 1], 0)
    table.keep_apart()
    table.add_box([0, 0, 0.06], [0.06, 0.06, 0.12], 0)
    assert table.localize().box.extent.max() < 0.2


# ---------------------------------------------------------------- what holds for every input


@pytest.mark.parametrize('up', [None, np.array([0.0, 0, -1])], ids=['unknown', 'gravity'])
@pytest.mark.parametrize('depth', [0.0, 0.005, 0.008, 0.012])
def test_an_object_lower_than_its_surroundings_has_no_negative_height(depth, up):
    z = np.full((480, 640), 0.8, np.float32)
    table = tilted(0)
    table.mask[190:290, 250:390] = True
    z[table.mask] += np.float32(depth)
    z += np.random.default_rng(0).normal(0, 0.001, z.shape).astype(np.float32)
    box = table.localize(depth=z, up=up).box
    assert (box.extent >= 0).all()
    assert box.centre[2] == pytest.approx(0.8 + depth, abs=0.004)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    points=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 120), st.just(3)),
        elements=st.floats(-0.125, 0.125, width=32),
    ),
    seed=st.integers(0, 2**16),
    up=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1),
    floor=st.none() | st.builds(Floor, st.floats(-0.3, 0.3), st.booleans()),
)
def test_no_side_of_a_box_is_negative(points, seed, up, floor):
    rng = np.random.default_rng(seed)
    axes = np.eye(3)[rng.integers(0, 3, len(points))] * rng.choice([-1, 1], (len(points), 1))
    box = fit_upright_box(points, points, axes, np.array(up) / np.linalg.norm(up), floor, 0.001)
    assert (box.extent >= 0).all()
    assert np.isfinite(box.centre).all()
    assert np.linalg.det(box.rotation) == pytest.approx(1)
