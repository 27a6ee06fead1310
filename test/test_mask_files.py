# SPDX-License-Identifier: Apache-2.0
"""Mask files as annotation tools, editors and segmentation demos save them, for every reader."""

import base64
import io
import json
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from lisa_ros.commands.export_answer import read_masks
from lisa_ros.datasets.label_maps import LabelMapImage
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import DataError, ImageError
from lisa_ros.evaluation.ground_truth import InstanceFolder
from lisa_ros.images.mask_file import read_mask

H, W = 60, 80
Y, X = np.mgrid[:H, :W]
DISC = (Y - 25) ** 2 + (X - 50) ** 2 < 15**2
ONE = DISC.astype(np.uint8)
PHOTO = np.random.default_rng(0).integers(1, 256, (H, W, 3), dtype=np.uint8)
WHITE = np.full((H, W, 3), 255, np.uint8)
ALPHA = ONE * np.uint8(255)


def png(pixels, **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, options.pop('kind', 'PNG'), **options)
    return stream.getvalue()


def palette(indices, *colours):
    image = Image.fromarray(indices)
    image.putpalette(np.array(colours, 'u1').tobytes() + bytes(768 - 3 * len(colours)))
    return image


SOFT = Image.fromarray(ALPHA).filter(ImageFilter.GaussianBlur(1))
MASKS = {  # all of them mark the disc
    '255': png(ALPHA),
    '1': png(ONE),
    '1 bit': png(DISC),
    '16 bit, 1': png(ONE.astype(np.uint16)),
    '16 bit, 256': png(ONE.astype(np.uint16) * 256),
    '16 bit, 65535': png(ONE.astype(np.uint16) * 65535),
    'palette of VOC': png(palette(ONE, (0, 0, 0), (128, 0, 0))),
    'palette, black on white': png(palette(ONE, (255, 255, 255), (0, 0, 0))),
    'palette, all black': png(palette(ONE)),
    'palette, transparent background': png(palette(ONE, (9, 9, 9), (128, 0, 0)), transparency=0),
    'rgb, white': png(WHITE * ONE[..., None]),
    'rgb, red': png(np.dstack([ALPHA, 0 * ONE, 0 * ONE])),
    'rgb, dark blue': png(np.dstack([0 * ONE, 0 * ONE, 4 * ONE])),
    'rgba, cut out': png(np.dstack([PHOTO, ALPHA])),
    'rgba, cut out and cleared': png(np.dstack([PHOTO * ONE[..., None], ALPHA])),
    'rgba, white brush': png(np.dstack([WHITE, ALPHA])),
    'rgba, black brush': png(np.dstack([0 * WHITE, ALPHA])),
    'rgba, brush of 40 %': png(np.dstack([WHITE, ONE * 102])),
    'rgba, soft brush': png(np.dstack([WHITE, np.asarray(SOFT)])),
    'rgba, opaque': png(np.dstack([WHITE * ONE[..., None], WHITE[..., 0]])),
    'grey and alpha': png(np.dstack([WHITE[..., 0], ALPHA])),
    'palette of a cut-out': png(
        Image.fromarray(np.dstack([PHOTO // 100 * 100, ALPHA])).quantize(64)
    ),
    'rgba of 16 bits': cv2.imencode('.png', np.dstack([PHOTO, ALPHA]).astype('u2') * 257)[
        1
    ].tobytes(),
    'soft edges': png(SOFT),
    'jpeg': png(ALPHA, kind='JPEG', quality=60),
    'jpeg, rgb': png(WHITE * ONE[..., None], kind='JPEG', quality=60),
    'jpeg, fine': png(ALPHA, kind='JPEG', quality=90),
    'jpeg, finest': png(ALPHA, kind='JPEG', quality=100),
    'jpeg, dark': png(ONE * np.uint8(128), kind='JPEG', quality=90),
    'webp': png(WHITE * ONE[..., None], kind='WEBP', quality=60),
    'tiff of jpeg': png(ALPHA, kind='TIFF', compression='jpeg', quality=90),
    'gif': png(ALPHA, kind='GIF'),
    'float tiff': cv2.imencode('.tiff', ONE.astype(np.float32))[1].tobytes(),
}
stream = io.BytesIO()  # white is 0: the tag is changed in the file
Image.fromarray(65535 * (1 - ONE.astype(np.uint16))).save(stream, 'TIFF')
MASKS['16 bit tiff, white is 0'] = stream.getvalue().replace(
    b'\6\1\3\0\1\0\0\0\1', b'\6\1\3\0\1\0\0\0\0'
)
UNCLEAR = {
    'no background': (png(np.where(DISC, 250, 3).astype(np.uint8)), 'no pixel of value 0'),
    'a photo': (png(PHOTO), 'several colours'),
    'a grey photo': (png(X.astype(np.uint8) * 3 + Y.astype(np.uint8)), '2.. different values'),
    'a photo as jpeg': (png(PHOTO, kind='JPEG'), 'several colours'),
    'a grey photo as jpeg': (
        png(PHOTO[..., 0], kind='JPEG', quality=90),
        '2.. different values',
    ),
    'depth': (png((X * 30 + Y).astype(np.uint16)), 'different values'),
    'two colours': (png(np.dstack([ALPHA, (X < 9) * np.uint8(255), 0 * ONE])), 'several colours'),
    'a mask with other transparency': (
        png(np.dstack([WHITE * ONE[..., None], (X > 9) * np.uint8(255)])),
        'transparent pixels and 2 colours',
    ),
    'fully transparent': (png(np.dstack([PHOTO, 0 * ONE])), 'transparent pixels'),
    'fractions': (cv2.imencode('.tiff', DISC * np.float32(0.5))[1].tobytes(), 'fractions'),
    'negative': (cv2.imencode('.tiff', -DISC.astype(np.int32))[1].tobytes(), 'negative'),
    'not an image': (b'<html>', 'cannot be decoded: 6 bytes'),
}


@pytest.mark.parametrize('kind', MASKS)
def test_every_kind_of_mask_marks_its_object(kind):
    np.testing.assert_array_equal(read_mask(MASKS[kind], kind).mask(), DISC)


@pytest.mark.parametrize('kind', UNCLEAR)
def test_a_mask_without_a_clear_meaning_is_an_error_with_the_cure(kind):
    data, message = UNCLEAR[kind]
    with pytest.raises(ImageError, match=message) as raised:
        read_mask(data, 'm.png').mask()
    assert 'm.png' in str(raised.value)


def test_an_empty_mask_is_empty_and_a_full_one_is_full():
    assert not read_mask(png(0 * ONE), 'm').mask().any()
    assert not read_mask(png(np.dstack([0 * WHITE, 0 * ONE])), 'm').mask().any()
    assert read_mask(png(0 * ONE + 255), 'm').mask().all()


def test_several_values_are_one_mask_and_keep_their_ids():
    ids = ONE * 3 + (X < 10) * np.uint8(200)
    image = read_mask(png(ids), 'm')
    np.testing.assert_array_equal(image.mask(), ids > 0)
    np.testing.assert_array_equal(image.ids(), ids)
    wide = ids.astype(np.uint16) * 300
    np.testing.assert_array_equal(read_mask(png(wide), 'm').ids(), wide)
    indexed = png(palette(ids, (0, 0, 0), (200, 0, 0)))
    np.testing.assert_array_equal(read_mask(indexed, 'm').ids(), ids)


def test_the_exif_orientation_of_a_mask_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.fromarray(np.rot90(ALPHA)), exif=exif)
    np.testing.assert_array_equal(read_mask(data, 'm').mask(), DISC)


def test_a_mask_is_limited_in_size_too():
    with pytest.raises(ImageError, match='80 x 60 pixels; expected at most 4,799 in all'):
        read_mask(png(ONE), 'm', max_pixels=4799)


@pytest.mark.parametrize('kind', ['palette of VOC', 'rgba, cut out', 'rgb, dark blue', 'jpeg'])
def test_all_readers_of_masks_agree(kind, tmp_path):
    data = MASKS[kind]
    (tmp_path / 'table').mkdir()
    (tmp_path / 'table.png').write_bytes(png(PHOTO))
    (tmp_path / 'table' / 'mug.png').write_bytes(data)
    Image.fromarray(PHOTO).save(tmp_path / 'other.png')
    shape = {
        'label': 'mug', 'shape_type': 'mask', 'points': [[0, 0], [W - 1, H - 1]],
        'mask': base64.b64encode(data).decode(),
    }  # fmt: skip
    (tmp_path / 'other.json').write_text(json.dumps({'shapes': [shape]}))
    for image in read_folder(tmp_path):
        ground_truth = image.queries[0].ground_truth(H, W)
        np.testing.assert_array_equal(ground_truth == 1, DISC)
    (mask,) = read_masks(tmp_path / 'table' / 'mug.png', (H, W))
    np.testing.assert_array_equal(mask, DISC)


@pytest.mark.parametrize('quality', [50, 75, 90, 95, 100])
def test_the_noise_of_a_jpeg_is_no_instance(quality, tmp_path):
    path = tmp_path / 'mug.jpg'
    path.write_bytes(png(ALPHA, kind='JPEG', quality=quality))
    (mask,) = read_masks(path, (H, W))
    np.testing.assert_array_equal(mask, DISC)
    path.write_bytes(png(0 * ONE, kind='JPEG', quality=quality))
    assert not read_mask(path).mask().any()
    path.write_bytes(png(0 * ONE + 255, kind='JPEG', quality=quality))
    assert read_mask(path).mask().all()


def test_ids_in_a_lossy_format_are_refused():
    with pytest.raises(ImageError, match='expected class ids without loss: save it as PNG'):
        read_mask(MASKS['jpeg'], 'm.jpg').ids('class ids')


def test_readers_of_ids_need_one_channel(tmp_path):
    (tmp_path / '5.png').write_bytes(MASKS['palette, black on white'])
    np.testing.assert_array_equal(InstanceFolder(tmp_path).ids(5), ONE)
    label_map = LabelMapImage(tmp_path / 'x.jpg', tmp_path / '5.png', {1: 'mug'})
    assert [query.text for query in label_map.queries] == ['mug']
    (tmp_path / '5.png').write_bytes(MASKS['rgba, cut out'])
    with pytest.raises(DataError, match=r'has 4 channels; expected one of instance ids: save it'):
        InstanceFolder(tmp_path).ids(5)
    with pytest.raises(DataError, match=r'has 4 channels; expected one of class ids: save it'):
        label_map.queries  # noqa: B018


def test_instances_without_a_background_are_refused(tmp_path):
    path = tmp_path / 'm.png'
    path.write_bytes(png(np.where(DISC, 250, 3).astype(np.uint8)))
    with pytest.raises(ImageError, match='values from 3 to 250, but no background'):
        read_masks(path, (H, W))
    path.write_bytes(png(np.where(DISC, 2, 255).astype(np.uint8)))  # 255: unlabelled
    np.testing.assert_array_equal(read_masks(path, (H, W)), DISC[None])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_ids_on_a_transparent_background(dtype):
    ids = ONE.astype(dtype) * 2 + (X > 30).astype(dtype) * ONE
    chunk = b'tRNS\0\0'  # the grey value that is transparent; Pillow writes it for 8 bits only
    data = png(ids)
    content = (2).to_bytes(4, 'big') + chunk + zlib.crc32(chunk).to_bytes(4, 'big')
    data = data[:33] + content + data[33:]  # behind the header
    assert (read_mask(data, 'ids').ids('ids') == ids).all()
