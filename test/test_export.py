# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros export`: the files of grasp planners hold the points of the object."""

import json
import struct

import cv2
import numpy as np
import pytest
from bag_kinds import STORE, TOPIC, write
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer

from lisa_ros import cli
from lisa_ros.commands import grasp_formats
from lisa_ros.commands.export_answer import read_masks
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
    """Return points (M, 3) and colours (M, 3) of a binary PCD, by its header."""
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


def ground_truth(rgbd_input, number):
    return (
        cv2.imread(str(SAMPLE / 'truth' / f'{rgbd_input.stamp}.png'), cv2.IMREAD_UNCHANGED)
        == number
    )


def located(rgbd_input, number):
    """Return the object of a ground truth mask in 3D."""
    rgbd = rgbd_input.rgbd
    return localize_object(rgbd.image, rgbd.depth, ground_truth(rgbd_input, number), rgbd.camera)


@pytest.fixture(scope='module')
def rgbd_input():
    return from_bag(BAG)


@pytest.fixture(scope='module')
def answered(tmp_path_factory):
    """Return the folder of files after a query."""
    out = tmp_path_factory.mktemp('answered') / 'out'
    arguments = [
        'export',
        '--bag',
        str(BAG),
        '--find',
        'segment the yellow mug',
        '--out',
        str(out),
    ]
    assert cli.main([*arguments, '--device', 'cpu']) == 0
    return out


@pytest.fixture
def files(rgbd_input, tmp_path):
    """Return a folder with an image, its depth as PNG and .npy, and a mask of the mug."""
    Image.fromarray(rgbd_input.rgbd.image).save(tmp_path / 'image.png')
    millimetres = np.nan_to_num(rgbd_input.rgbd.depth * 1000).round().astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'depth.png'), millimetres)
    np.save(tmp_path / 'depth.npy', rgbd_input.rgbd.depth)
    cv2.imwrite(str(tmp_path / 'mug.png'), ground_truth(rgbd_input, MUG).astype(np.uint8) * 255)
    return tmp_path


def exported(files, *more, depth='depth.png', mask='mug.png'):
    inputs = ['--image', str(files / 'image.png'), '--depth', str(files / depth), *K]
    out = files / 'out'
    return ['export', *inputs, '--mask', str(files / mask), '--out', str(out), *more], out


def test_the_mug_of_the_model_is_at_the_ground_truth_position(answered, rgbd_input):
    answer = json.loads((answered / 'answer.json').read_text())
    assert answer['status'] == 'FOUND'
    assert answer['query'] == 'segment the yellow mug'
    assert answer['header'] == {
        'stamp': {'sec': 1_790_000_000, 'nanosec': 0},
        'frame_id': 'camera_color_optical_frame',
    }
    (mug,) = answer['instances']
    assert mug['name'] == 'yellow mug'
    points, colours = read_pcd(answered / 'object.pcd')
    assert np.linalg.norm(points.mean(axis=0) - located(rgbd_input, MUG).centroid) < 0.005
    assert points.mean(axis=0) == pytest.approx(mug['place']['centroid'], abs=1e-5)
    assert len(points) == mug['place']['points']
    red, green, blue = colours.mean(axis=0)
    assert min(red, green) > 1.5 * blue  # it is yellow, so red and blue are not swapped
    assert Image.open(answered / 'overlay.png').size[0] >= 640
    assert {path.name for path in answered.iterdir()} == {
        *grasp_formats.NAMES, 'answer.json', 'overlay.png',
    }  # fmt: skip


def test_the_clouds_are_the_scene_the_object_and_the_rest(answered, rgbd_input):
    scene, colours = read_pcd(answered / 'scene.pcd')
    valid = np.isfinite(rgbd_input.rgbd.depth)
    assert len(scene) == valid.sum()
    assert scene[:, 2] == pytest.approx(rgbd_input.rgbd.depth[valid])
    assert (colours == rgbd_input.rgbd.image[valid]).all()
    points, _ = read_pcd(answered / 'object.pcd')
    rest, _ = read_pcd(answered / 'scene_without_object.pcd')
    (mug,) = json.loads((answered / 'answer.json').read_text())['instances']
    around = 4 * np.pi * (2 * np.sqrt(mug['area'] / np.pi) + 2)  # two pixels round it, and more
    assert len(scene) - mug['area'] - around <= len(rest) < len(scene) - mug['area']
    rows = {row.tobytes() for row in rest}
    assert not any(row.tobytes() in rows for row in points)


def test_contact_graspnet_reads_the_points_of_the_object(answered, rgbd_input):
    with np.load(answered / 'contact_graspnet.npz') as arrays:
        assert set(arrays) == {'rgb', 'depth', 'K', 'segmap'}
        rgb, depth, k, segmap = (arrays[name] for name in ('rgb', 'depth', 'K', 'segmap'))
    assert (rgb.dtype, depth.dtype, k.dtype, segmap.dtype) == ('u1', 'f4', 'f8', 'u1')
    assert depth.shape == segmap.shape == rgb.shape[:2]
    assert np.isfinite(depth).all()
    assert (cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB) == rgbd_input.rgbd.image).all()
    assert np.unique(segmap).tolist() == [0, 1]
    v, u = np.nonzero(depth * (segmap == 1) > 0)  # as in its depth2pc
    z = depth[v, u]
    back_projected = np.stack(
        [(u - k[0, 2]) * z / k[0, 0], (v - k[1, 2]) * z / k[1, 1], z], axis=1
    )
    points, _ = read_pcd(answered / 'object.pcd')
    assert back_projected == pytest.approx(points, abs=1e-6)


def test_gpd_and_anygrasp_read_the_scene_and_the_object_in_it(answered):
    scene, colours = read_pcd(answered / 'scene.pcd')
    points, _ = read_pcd(answered / 'object.pcd')
    with np.load(answered / 'gpd.npz') as arrays:
        assert arrays['samples'].dtype == 'f8'
        assert arrays['indices'].dtype == 'i8'
        assert (arrays['samples'] == points).all()
        assert (scene[arrays['indices']] == points).all()
        assert arrays['view_points'].tolist() == [[0, 0, 0]]
    with np.load(answered / 'anygrasp.npz') as arrays:
        assert (arrays['points'] == scene).all()
        assert arrays['points'].dtype == arrays['colors'].dtype == arrays['lims'].dtype == 'f4'
        assert arrays['colors'] == pytest.approx(colours / 255)
        assert arrays['mask'].dtype == bool
        assert (arrays['points'][arrays['mask']] == points).all()
        assert ((arrays['seg_mask'] == 1) == arrays['mask']).all()
        low, high = arrays['lims'][::2], arrays['lims'][1::2]
    assert (low < points.min(axis=0)).all()
    assert (high > points.max(axis=0)).all()


@pytest.mark.parametrize('depth', ['depth.png', 'depth.npy'])
def test_files_and_a_mask_file_give_the_same_points(depth, files, rgbd_input, capsys):
    arguments, out = exported(files, depth=depth)
    assert cli.main(arguments) == 0
    assert '1: ' in capsys.readouterr().out
    points, _ = read_pcd(out / 'object.pcd')
    assert points == pytest.approx(located(rgbd_input, MUG).points, abs=1e-5)
    answer = json.loads((out / 'answer.json').read_text())
    assert answer['header'] is None
    assert answer['instances'][0]['score'] is None
    assert answer['instances'][0]['name'] is None


def test_several_instances_keep_their_ids(files, rgbd_input):
    labels = np.zeros(rgbd_input.rgbd.depth.shape, np.uint8)
    labels[ground_truth(rgbd_input, MUG)], labels[ground_truth(rgbd_input, 6)] = 2, 1
    labels[:5] = 255  # unlabelled, as in vision_msgs
    Image.fromarray(labels).save(files / 'labels.png')
    arguments, out = exported(files, mask='labels.png')
    assert cli.main(arguments) == 0
    with np.load(out / 'anygrasp.npz') as arrays:
        for label, object_id in ((1, 6), (2, MUG)):
            points = arrays['points'][arrays['seg_mask'] == label]
            assert points == pytest.approx(located(rgbd_input, object_id).points, abs=1e-5)


def test_a_later_image_comes_with_its_own_depth():
    later = from_bag(BAG, at=2.05)
    assert later.stamp == 1_790_000_002_100_000_000
    assert not np.array_equal(later.rgbd.depth, from_bag(BAG).rgbd.depth)


def test_an_absent_object_leaves_no_file_of_an_earlier_answer(files, capsys):
    arguments, out = exported(files)
    assert cli.main(arguments) == 0
    capsys.readouterr()
    query = ['export', '--bag', str(BAG), '--find', 'hand me the banana', '--out', str(out)]
    assert cli.main([*query, '--device', 'cpu']) == 1
    error = capsys.readouterr().err
    assert error.startswith('lisa-ros: nothing was found')
    assert error.count('\n') == 1
    assert {path.name for path in out.iterdir()} == {'answer.json', 'overlay.png'}
    assert json.loads((out / 'answer.json').read_text())['status'] == 'NOT_FOUND'


def test_a_mask_without_depth_is_an_error(files, rgbd_input, capsys):
    depth = np.where(ground_truth(rgbd_input, MUG), np.nan, rgbd_input.rgbd.depth)
    np.save(files / 'holes.npy', depth)
    arguments, _ = exported(files, depth='holes.npy')
    assert cli.main(arguments) == 1
    assert 'no mask has valid depth of its object' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'--depth': None}, 'no --depth: a 16-bit PNG [mm] or a .npy [m] is needed'),
        ({'--depth': 'no_such.png'}, 'cannot be read as depth'),
        ({'--depth': 'image.png'}, 'not depth: expected a 16-bit PNG'),
        ({'--depth': 'wide.npy'}, 'depth is 320 x 100 pixels, the image 320 x 240'),
        ({'--k': None}, 'no --k FX FY CX CY'),
        ({'--k': ['0', '1', '2', '3']}, 'expected fx and fy above 0'),
        ({'--k': ['0.8', '0.8', '0.5', '0.5']}, 'give pixels, not fractions of the image'),
        ({'--image': 'no_such.png'}, 'cannot be read as an image'),
        ({'--mask': 'no_such.png'}, 'cannot be read as a mask'),
        ({'--mask': 'small.png'}, 'is 20 x 10 pixels, the image 320 x 240'),
        ({'--mask': 'image.png'}, 'has 3 channels'),
        ({'--mask': 'empty.png'}, 'has 0 values above 0'),
        ({'--at': ['1']}, '--at is not for --image'),
        ({'--out': 'image.png'}, 'cannot be written (Not a directory)'),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(change, message, files, capsys):
    np.save(files / 'wide.npy', np.ones((100, 320), np.float32))
    Image.fromarray(np.ones((10, 20), np.uint8)).save(files / 'small.png')
    Image.fromarray(np.zeros((240, 320), np.uint8)).save(files / 'empty.png')
    options = {
        '--image': 'image.png', '--depth': 'depth.png', '--k': K[1:], '--mask': 'mug.png',
        '--out': 'out', **change,
    }  # fmt: skip
    arguments = ['export']
    for name, value in options.items():
        if value is not None:
            values = [str(files / value)] if isinstance(value, str) else value
            arguments += [name, *values]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith('lisa-ros: ')
    assert message in error
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            {'image_topic': '/nowhere'},
            'expected --image-topic to be one of /camera/color/image_raw',
        ),
        ({'depth_topic': '/camera/color/image_raw'}, 'expected --depth-topic to be one of'),
        ({'info_topic': '/nowhere'}, 'expected --info-topic to be one of'),
        ({'at': 60.0}, 'no image on /camera/color/image_raw at or after 60 s; it lasts 3.9 s'),
    ],
)
def test_what_a_bag_lacks_is_an_error(arguments, message):
    with pytest.raises(DataError, match=message):
        from_bag(BAG, **arguments)


def test_a_bag_without_depth_is_an_error(tmp_path):
    bag = write(tmp_path / 'bag', [BagImage(1, np.zeros((4, 6, 3), np.uint8))])
    with pytest.raises(DataError, match='no topic for --depth-topic has messages'):
        from_bag(bag, image_topic=TOPIC)


def test_integer_depth_is_in_millimetres(tmp_path):
    for kind in (np.uint16, np.int32):
        np.save(tmp_path / 'depth.npy', np.array([[0, 1500]], kind))
        assert read_depth(tmp_path / 'depth.npy') == pytest.approx(
            np.array([[np.nan, 1.5]]), nan_ok=True
        )


def test_depth_of_half_the_size_is_scaled_to_the_image(files, rgbd_input):
    np.save(files / 'half.npy', rgbd_input.rgbd.depth[::2, ::2])
    k = [float(value) for value in K[1:]]
    half = from_files(files / 'image.png', files / 'half.npy', k)
    assert half.rgbd.depth.shape == rgbd_input.rgbd.depth.shape


def test_each_value_of_a_mask_file_is_an_instance(tmp_path):
    path = tmp_path / 'mask.png'
    Image.fromarray(np.array([[0, 7, 9, 255]], np.uint8)).save(path)
    assert read_masks(path, (1, 4)).tolist() == [
        [[False, True, False, False]],
        [[False, False, True, False]],
    ]
    with pytest.raises(ImageError, match='is 4 x 1 pixels, the image 5 x 1'):
        read_masks(path, (1, 5))


@pytest.fixture
def recorded(rgbd_input, tmp_path):
    """Return a function that writes the first frame to a bag after a change of its messages."""

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


@pytest.mark.parametrize('orientation', [3, 6])
def test_an_image_that_viewers_turn_is_refused_with_depth(orientation, files, capsys):
    image = Image.open(files / 'image.png')
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(files / 'turned.jpg', exif=exif)
    arguments, out = exported(files)
    arguments[arguments.index(str(files / 'image.png'))] = str(files / 'turned.jpg')
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert f'turned.jpg has the EXIF orientation {orientation}: viewers show it turned' in error
    assert 'exiftool' in error
    assert not out.exists()


@pytest.mark.parametrize('orientation', [3, 6])
@pytest.mark.parametrize('suffix', ['.png', '.tiff', '.float.tiff'])
def test_a_depth_file_that_viewers_turn_is_refused(suffix, orientation, tmp_path):
    path = tmp_path / f'depth{suffix}'
    metres = np.full((2, 3), 1.5)
    if suffix == '.float.tiff':  # of 64 bits: change a tag of OpenCV's file
        tiff = cv2.imencode('.tiff', metres)[1].tobytes()
        plain = struct.pack('<HHIH', 284, 3, 1, 1)  # planar configuration 1 is the default
        turned = struct.pack('<HHIH', 0x0112, 3, 1, orientation)
        assert plain in tiff
        path.write_bytes(tiff.replace(plain, turned))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray((metres * 1000).astype(np.uint16)).save(path, exif=exif)
    with pytest.raises(ImageError, match=rf'the EXIF orientation {orientation}: viewers show it'):
        read_depth(path)


def test_a_depth_file_with_white_as_zero_is_refused(tmp_path):
    path = tmp_path / 'depth.tiff'
    Image.fromarray(np.full((2, 3), 1500, np.uint16)).save(path)
    assert read_depth(path) == pytest.approx(np.full((2, 3), 1.5))
    plain, inverted = (struct.pack('<HHIH', 262, 3, 1, value) for value in (1, 0))
    path.write_bytes(path.read_bytes().replace(plain, inverted))
    with pytest.raises(ImageError, match='Interpretation 0, white is zero'):
        read_depth(path)


def test_a_depth_file_is_not_believed_before_its_size_is_known(tmp_path):
    header = {'descr': '<f4', 'fortran_order': False, 'shape': (10**6, 10**6)}
    with (tmp_path / 'huge.npy').open('wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ImageError, match=r'huge\.npy cannot be read as depth'):
        read_depth(tmp_path / 'huge.npy')
    cv2.imwrite(str(tmp_path / 'depth.tiff'), np.full((2, 3), 1.5))
    assert read_depth(tmp_path / 'depth.tiff').tolist() == [[1.5] * 3] * 2


COMPRESSED_DEPTH = {  # format -> data of a depth image in millimetres
    '16UC1; compressedDepth png': lambda depth: bytes(12) + png(depth),
    '16UC1; png compressed ': lambda depth: png(depth),
}


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


def compress_topics(source, out, formats):
    """Copy a bag; the topics in `formats` become CompressedImage of that format."""
    compressed = STORE.types['sensor_msgs/msg/CompressedImage']
    with open_bag(source) as reader, Writer(out, version=9, storage_plugin=MCAP) as writer:
        for connection, when, data in reader.messages():
            message, kind = reader.deserialize(data, connection.msgtype), connection.msgtype
            text = formats.get(connection.topic)
            if text is not None:
                pixels = message.data.view('<u2').reshape(message.height, message.width)
                content = np.frombuffer(COMPRESSED_DEPTH[text](pixels), np.uint8)
                message, kind = compressed(message.header, text, content), compressed.__msgtype__
            topic = writer.add_connection(connection.topic, kind, typestore=STORE)
            writer.write(topic, when, STORE.serialize_cdr(message, kind))
    return out


@pytest.mark.parametrize('text', COMPRESSED_DEPTH)
def test_a_bag_with_only_compressed_depth_is_exported(text, recorded, rgbd_input, tmp_path):
    raw = recorded(lambda topic, message: None)
    bag = compress_topics(raw, tmp_path / 'compressed', {'/camera/depth': text})
    for topic in (None, '/camera/depth'):
        found = from_bag(bag, depth_topic=topic)
        np.testing.assert_array_equal(found.rgbd.depth, rgbd_input.rgbd.depth)


@pytest.mark.parametrize(
    ('model', 'd'),
    [('plumb_bob', [-0.03, 0.035, 0, 0, -0.01, 0, 0, 0]), ('fisheye', [0.01, 0.001, 0, 0])],
)
def test_lenses_as_drivers_write_them_are_exported(model, d, recorded):
    def change(topic, message):
        if topic.endswith('info'):
            message.distortion_model, message.d = model, np.array(d)

    camera = from_bag(recorded(change)).rgbd.camera
    assert (camera.distortion_model, camera.distortion.tolist()) == (model, d)
    assert np.isfinite(camera.rays()).all()


def test_depth_of_another_time_is_refused(recorded):
    def late(topic, message):
        if topic.endswith('depth'):
            message.header.stamp.nanosec += 60_000_000

    with pytest.raises(DataError, match=r'no depth on /camera/depth within 0\.05 s of the image'):
        from_bag(recorded(late))


def test_depth_of_another_camera_is_refused(recorded):
    def elsewhere(topic, message):
        if topic.endswith('depth'):
            message.header.frame_id = 'camera_depth_optical_frame'

    with pytest.raises(ImageError, match='depth is in frame camera_depth_optical_frame'):
        from_bag(recorded(elsewhere))


def test_a_distorted_lens_gives_a_warning_about_contact_graspnet(recorded, files, capsys):
    def distort(topic, message):
        if topic.endswith('info'):
            message.d = np.array([-0.2, 0.05, 0, 0, 0])

    words = ['export', '--bag', str(recorded(distort)), '--mask', str(files / 'mug.png')]
    assert cli.main([*words, '--out', str(files / 'out')]) == 0
    assert 'Contact-GraspNet reads only K' in capsys.readouterr().err
