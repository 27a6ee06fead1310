# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros export`: the files of grasp planners hold what was found, to the point."""

import json

import cv2
import numpy as np
import pytest
from bag_kinds import STORE, TOPIC, write
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer

from lisa_ros import cli
from lisa_ros.commands import grasp_formats
from lisa_ros.commands.export import read_masks
from lisa_ros.commands.rgbd_input import from_bag, from_files, read_depth
from lisa_ros.errors import DataError, ImageError
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.messages.bag import BagImage, open_bag
from lisa_ros.resources import SAMPLE

BAG = SAMPLE / 'bag'
MUG = 4
MCAP = StoragePlugin.MCAP
K = ['--k', '257.34083046', '257.34083046', '159.5', '119.5']


def read_pcd(path):
    """Points (M, 3) and colours (M, 3) of a binary PCD, read by its header."""
    head, _, body = path.read_bytes().partition(b'DATA binary\n')
    lines = [line.split() for line in head.decode().splitlines() if not line.startswith('#')]
    known = {name: values for name, *values in lines}
    assert known['VERSION'] == ['0.7']
    assert known['SIZE'] == ['4'] * 4
    assert known['TYPE'] == ['F'] * 4
    assert known['COUNT'] == ['1'] * 4
    count = int(known['POINTS'][0])
    assert int(known['WIDTH'][0]) * int(known['HEIGHT'][0]) == count
    assert len(body) == 16 * count
    rows = np.frombuffer(body, [(name, '<f4') for name in known['FIELDS']])
    packed = rows['rgb'].view('<u4')
    assert (packed >> 24 == 0).all()
    colours = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1)
    return np.stack([rows[axis] for axis in 'xyz'], axis=1), colours.astype(np.uint8)


def truth(shot, number):
    return cv2.imread(str(SAMPLE / 'truth' / f'{shot.stamp}.png'), cv2.IMREAD_UNCHANGED) == number


def own(shot, number):
    """What the truth mask of a thing shows in space."""
    space = shot.space
    return localize_object(space.image, space.depth, truth(shot, number), space.camera)


@pytest.fixture(scope='module')
def shot():
    return from_bag(BAG)


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    """The files after the model was asked."""
    out = tmp_path_factory.mktemp('asked') / 'out'
    given = ['export', '--bag', str(BAG), '--find', 'segment the yellow mug', '--out', str(out)]
    assert cli.main([*given, '--device', 'cpu']) == 0
    return out


@pytest.fixture
def files(shot, tmp_path):
    """A picture, its depth in both kinds, and a mask of the mug."""
    Image.fromarray(shot.space.image).save(tmp_path / 'picture.png')
    millimetres = np.nan_to_num(shot.space.depth * 1000).round().astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'depth.png'), millimetres)
    np.save(tmp_path / 'depth.npy', shot.space.depth)
    cv2.imwrite(str(tmp_path / 'mug.png'), truth(shot, MUG).astype(np.uint8) * 255)
    return tmp_path


def exported(files, *more, depth='depth.png', mask='mug.png'):
    given = ['--image', str(files / 'picture.png'), '--depth', str(files / depth), *K]
    out = files / 'out'
    return ['export', *given, '--mask', str(files / mask), '--out', str(out), *more], out


def test_the_mug_that_the_model_finds_lies_where_the_truth_does(asked, shot):
    told = json.loads((asked / 'answer.json').read_text())
    assert told['status'] == 'FOUND'
    assert told['query'] == 'segment the yellow mug'
    assert told['header'] == {
        'stamp': {'sec': 1_790_000_000, 'nanosec': 0},
        'frame_id': 'camera_color_optical_frame',
    }
    (mug,) = told['instances']
    points, colours = read_pcd(asked / 'object.pcd')
    assert np.linalg.norm(points.mean(axis=0) - own(shot, MUG).centroid) < 0.005
    assert points.mean(axis=0) == pytest.approx(mug['place']['centroid'], abs=1e-5)
    assert len(points) == mug['place']['points']
    red, green, blue = colours.mean(axis=0)
    assert min(red, green) > 1.5 * blue  # it is yellow, so red and blue are not swapped
    assert Image.open(asked / 'overlay.png').size[0] >= 640
    assert {path.name for path in asked.iterdir()} == {
        *grasp_formats.NAMES, 'answer.json', 'overlay.png',
    }  # fmt: skip


def test_the_clouds_are_the_scene_the_object_and_the_rest(asked, shot):
    scene, colours = read_pcd(asked / 'scene.pcd')
    valid = np.isfinite(shot.space.depth)
    assert len(scene) == valid.sum()
    assert scene[:, 2] == pytest.approx(shot.space.depth[valid])
    assert (colours == shot.space.image[valid]).all()
    points, _ = read_pcd(asked / 'object.pcd')
    rest, _ = read_pcd(asked / 'scene_without_object.pcd')
    (mug,) = json.loads((asked / 'answer.json').read_text())['instances']
    around = 4 * np.pi * (2 * np.sqrt(mug['area'] / np.pi) + 2)  # two pixels round it, and more
    assert len(scene) - mug['area'] - around <= len(rest) < len(scene) - mug['area']
    rows = {row.tobytes() for row in rest}
    assert not any(row.tobytes() in rows for row in points)


def test_contact_graspnet_gets_the_points_of_the_object_back(asked, shot):
    with np.load(asked / 'contact_graspnet.npz') as found:
        assert set(found) == {'rgb', 'depth', 'K', 'segmap'}
        rgb, depth, k, segmap = (found[name] for name in ('rgb', 'depth', 'K', 'segmap'))
    assert (rgb.dtype, depth.dtype, k.dtype, segmap.dtype) == ('u1', 'f4', 'f8', 'u1')
    assert depth.shape == segmap.shape == rgb.shape[:2]
    assert np.isfinite(depth).all()
    assert (cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB) == shot.space.image).all()  # as it reads it
    assert np.unique(segmap).tolist() == [0, 1]
    v, u = np.nonzero(depth * (segmap == 1) > 0)  # as its depth2pc does
    z = depth[v, u]
    theirs = np.stack([(u - k[0, 2]) * z / k[0, 0], (v - k[1, 2]) * z / k[1, 1], z], axis=1)
    points, _ = read_pcd(asked / 'object.pcd')
    assert theirs == pytest.approx(points, abs=1e-6)


def test_gpd_and_anygrasp_get_the_scene_and_the_object_in_it(asked):
    scene, colours = read_pcd(asked / 'scene.pcd')
    points, _ = read_pcd(asked / 'object.pcd')
    with np.load(asked / 'gpd.npz') as found:
        assert found['samples'].dtype == 'f8'
        assert found['indices'].dtype == 'i8'
        assert (found['samples'] == points).all()
        assert (scene[found['indices']] == points).all()
        assert found['view_points'].tolist() == [[0, 0, 0]]
    with np.load(asked / 'anygrasp.npz') as found:
        assert (found['points'] == scene).all()
        assert found['points'].dtype == found['colors'].dtype == found['lims'].dtype == 'f4'
        assert found['colors'] == pytest.approx(colours / 255)
        assert found['mask'].dtype == bool
        assert (found['points'][found['mask']] == points).all()
        assert ((found['seg_mask'] == 1) == found['mask']).all()
        low, high = found['lims'][::2], found['lims'][1::2]
    assert (low < points.min(axis=0)).all()
    assert (high > points.max(axis=0)).all()


@pytest.mark.parametrize('depth', ['depth.png', 'depth.npy'])
def test_files_and_a_given_mask_give_the_same_points(depth, files, shot, capsys):
    given, out = exported(files, depth=depth)
    assert cli.main(given) == 0
    assert '1: ' in capsys.readouterr().out
    points, _ = read_pcd(out / 'object.pcd')
    assert points == pytest.approx(own(shot, MUG).points, abs=1e-5)
    told = json.loads((out / 'answer.json').read_text())
    assert told['header'] is None
    assert told['instances'][0]['score'] is None


def test_several_instances_keep_their_ids(files, shot):
    labels = np.zeros(shot.space.depth.shape, np.uint8)
    labels[truth(shot, MUG)], labels[truth(shot, 6)] = 2, 1
    labels[:5] = 255  # unlabelled, as vision_msgs has it
    Image.fromarray(labels).save(files / 'labels.png')
    given, out = exported(files, mask='labels.png')
    assert cli.main(given) == 0
    with np.load(out / 'anygrasp.npz') as found:
        for number, real in ((1, 6), (2, MUG)):
            there = found['points'][found['seg_mask'] == number]
            assert there == pytest.approx(own(shot, real).points, abs=1e-5)


def test_a_later_frame_is_taken_with_its_own_depth():
    later = from_bag(BAG, at=2.05)
    assert later.stamp == 1_790_000_002_100_000_000
    assert not np.array_equal(later.space.depth, from_bag(BAG).space.depth)


def test_what_is_not_there_leaves_no_file_of_before(files, capsys):
    given, out = exported(files)
    assert cli.main(given) == 0
    capsys.readouterr()
    asked = ['export', '--bag', str(BAG), '--find', 'hand me the banana', '--out', str(out)]
    assert cli.main([*asked, '--device', 'cpu']) == 1
    says = capsys.readouterr().err
    assert says.startswith('lisa-ros: nothing was found')
    assert says.count('\n') == 1
    assert {path.name for path in out.iterdir()} == {'answer.json', 'overlay.png'}
    assert json.loads((out / 'answer.json').read_text())['status'] == 'NOT_FOUND'


def test_a_mask_without_depth_says_so(files, shot, capsys):
    depth = np.where(truth(shot, MUG), np.nan, shot.space.depth)
    np.save(files / 'holes.npy', depth)
    given, _ = exported(files, depth='holes.npy')
    assert cli.main(given) == 1
    assert 'no pixel of the mask has valid depth' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'--depth': None}, 'no --depth: a 16-bit PNG [mm] or a .npy [m] is needed'),
        ({'--depth': 'no_such.png'}, 'cannot be read as depth'),
        ({'--depth': 'picture.png'}, 'no depth: expected a PNG of 16 bits'),
        ({'--depth': 'wide.npy'}, 'depth is 320 x 100 pixels, the image 320 x 240'),
        ({'--k': None}, 'no --k FX FY CX CY'),
        ({'--k': ['0', '1', '2', '3']}, 'expected fx and fy above 0'),
        ({'--image': 'no_such.png'}, 'cannot be read as a picture'),
        ({'--mask': 'no_such.png'}, 'cannot be read as a mask'),
        ({'--mask': 'small.png'}, 'is 20 x 10 pixels, the picture 320 x 240'),
        ({'--mask': 'picture.png'}, 'has 3 channels'),
        ({'--mask': 'empty.png'}, 'has 0 values above 0'),
        ({'--at': ['1']}, '--at is not for --image'),
        ({'--out': 'picture.png'}, 'cannot be written to'),
    ],
)
def test_what_the_user_can_mend_is_one_line(change, says, files, capsys):
    np.save(files / 'wide.npy', np.ones((100, 320), np.float32))
    Image.fromarray(np.ones((10, 20), np.uint8)).save(files / 'small.png')
    Image.fromarray(np.zeros((240, 320), np.uint8)).save(files / 'empty.png')
    given = {
        '--image': 'picture.png', '--depth': 'depth.png', '--k': K[1:], '--mask': 'mug.png',
        '--out': 'out', **change,
    }  # fmt: skip
    words = ['export']
    for name, value in given.items():
        if value is not None:
            values = [str(files / value)] if isinstance(value, str) else value
            words += [name, *values]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith('lisa-ros: ')
    assert says in error
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        (
            {'image_topic': '/nowhere'},
            'expected --image-topic to be one of /camera/color/image_raw',
        ),
        ({'depth_topic': '/camera/color/image_raw'}, 'expected --depth-topic to be one of'),
        ({'info_topic': '/nowhere'}, 'expected --info-topic to be one of'),
        ({'at': 60.0}, 'no picture on /camera/color/image_raw at or after 60 s; it lasts 3.9 s'),
    ],
)
def test_a_bag_that_has_not_what_is_asked_for_is_named(asked, says):
    with pytest.raises(DataError, match=says):
        from_bag(BAG, **asked)


def test_a_bag_without_depth_is_named(tmp_path):
    bag = write(tmp_path / 'bag', [BagImage(1, np.zeros((4, 6, 3), np.uint8))])
    with pytest.raises(DataError, match='expected --depth-topic to be one of none'):
        from_bag(bag, image_topic=TOPIC)


def test_depth_in_whole_numbers_is_millimetres(tmp_path):
    for kind in (np.uint16, np.int32):
        np.save(tmp_path / 'depth.npy', np.array([[0, 1500]], kind))
        assert read_depth(tmp_path / 'depth.npy') == pytest.approx(
            np.array([[np.nan, 1.5]]), nan_ok=True
        )


def test_depth_of_half_the_size_is_brought_to_the_picture(files, shot):
    np.save(files / 'half.npy', shot.space.depth[::2, ::2])
    k = [float(value) for value in K[1:]]
    half = from_files(files / 'picture.png', files / 'half.npy', k)
    assert half.space.depth.shape == shot.space.depth.shape


def test_masks_of_other_values_than_255_alone_are_instances(tmp_path):
    path = tmp_path / 'mask.png'
    Image.fromarray(np.array([[0, 7, 9, 255]], np.uint8)).save(path)
    assert read_masks(path, (1, 4)).tolist() == [
        [[False, True, False, False]],
        [[False, False, True, False]],
    ]
    with pytest.raises(ImageError, match='is 4 x 1 pixels, the picture 5 x 1'):
        read_masks(path, (1, 5))


@pytest.fixture
def recorded(shot, tmp_path):
    """A function that writes the first frame to a bag, its messages changed by the test."""

    def bag(change):
        path = tmp_path / 'recorded'
        topics = {
            '/camera/color/image_raw': '/camera/image_raw',
            '/camera/aligned_depth_to_color/image_raw': '/camera/depth',
            '/camera/color/camera_info': '/camera/camera_info',
        }
        with open_bag(BAG) as reader, Writer(path, version=9, storage_plugin=MCAP) as writer:
            for connection, when, data in reader.messages():
                name = topics.pop(connection.topic, None)
                if name is None:
                    continue
                message = reader.deserialize(data, connection.msgtype)
                change(name, message)
                out = writer.add_connection(name, connection.msgtype, typestore=STORE)
                writer.write(out, when, STORE.serialize_cdr(message, connection.msgtype))
        return path

    return bag


def test_depth_of_another_time_is_refused(recorded):
    def late(topic, message):
        if topic.endswith('depth'):
            message.header.stamp.nanosec += 60_000_000

    with pytest.raises(
        DataError, match=r'no depth on /camera/depth within 0\.05 s of the picture'
    ):
        from_bag(recorded(late))


def test_depth_of_another_camera_is_refused(recorded):
    def elsewhere(topic, message):
        if topic.endswith('depth'):
            message.header.frame_id = 'camera_depth_optical_frame'

    with pytest.raises(ImageError, match='depth is in frame camera_depth_optical_frame'):
        from_bag(recorded(elsewhere))


def test_of_a_bent_lens_contact_graspnet_is_warned_about(recorded, files, capsys):
    def bent(topic, message):
        if topic.endswith('info'):
            message.d = np.array([-0.2, 0.05, 0, 0, 0])

    words = ['export', '--bag', str(recorded(bent)), '--mask', str(files / 'mug.png')]
    assert cli.main([*words, '--out', str(files / 'out')]) == 0
    assert 'Contact-GraspNet knows K alone' in capsys.readouterr().err
