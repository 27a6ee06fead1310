# SPDX-License-Identifier: Apache-2.0
"""Names in annotations and of their files, as people and other systems write them."""

import base64
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery, Polygon
from lisa_ros.datasets.checking import read_checked
from lisa_ros.datasets.coco import category_phrase
from lisa_ros.datasets.json_io import check_image
from lisa_ros.datasets.label_maps import read_ade20k
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import DataError
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.ground_truth import AnnotationTruth, InstanceFolder

H, W = 30, 40
LEFT = [[2, 2], [10, 2], [10, 10], [2, 10]]
RIGHT = [[20, 2], [30, 2], [30, 10], [20, 10]]
APPLE_DOUBLE = b'\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X'  # starts each file ._NAME of macOS


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (W, H), (200, 120, 40)).save(path)


def write_mask(path, size=(W, H)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], np.uint8)
    mask[2:10, 2:10] = 255
    Image.fromarray(mask).save(path, 'PNG')


def write_labels(path, *shapes, **more):
    """Write a file of labelme; shapes are (label, points)."""
    entries = [
        {'label': label, 'points': points, 'shape_type': 'polygon'} for label, points in shapes
    ]
    path.write_text(json.dumps({'shapes': entries, **more}))


def texts_and_errors(folder):
    errors = []
    images = read_checked(str(folder), lambda error: errors.append(str(error)))
    return {image.name: [query.text for query in image.queries] for image in images}, errors


# ---- suffixes


def test_masks_and_labels_with_a_suffix_in_upper_case_are_read(tmp_path):
    write_image(tmp_path / 'a.JPG')
    write_labels(tmp_path / 'a.JSON', ('mug', LEFT))
    write_mask(tmp_path / 'a' / 'red bowl.PNG')
    assert texts_and_errors(tmp_path) == ({'a': ['mug', 'red bowl']}, [])


def test_label_maps_with_a_suffix_in_upper_case_are_read(tmp_path):
    write_image(tmp_path / 'images/training/a.jpg')
    write_mask(tmp_path / 'annotations/training/a.PNG')
    (tmp_path / 'objectInfo150.txt').write_text('Idx\tName\n255\twall\n')
    (image,) = read_ade20k(tmp_path)
    assert [query.text for query in image.queries] == ['wall']


def test_two_files_of_labels_for_one_image_are_named(tmp_path):
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.JSON', ('mug', LEFT))
    write_labels(tmp_path / 'a.json', ('bowl', LEFT))
    texts, (error,) = texts_and_errors(tmp_path)
    assert texts == {'a': ['mug']}
    assert error == f'{tmp_path / "a.json"}: another file has the same stem; rename one of them'


def test_files_that_macos_adds_to_archives_are_no_labels(tmp_path):
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.json', ('mug', LEFT))
    write_mask(tmp_path / 'a' / 'bowl.png')
    for name in ('._a.png', '._a.json', 'a/._bowl.png'):
        (tmp_path / name).write_bytes(APPLE_DOUBLE)
    assert texts_and_errors(tmp_path) == ({'a': ['mug', 'bowl']}, [])


# ---- names of objects


@pytest.mark.parametrize(
    ('name', 'expected'),
    [(' mug\n', 'mug'), ('red  mug', 'red mug'), ('_mug_', 'mug'), ('cup:\thandle', 'cup handle')],
)
def test_white_space_in_a_name_has_no_meaning(name, expected):
    assert category_phrase(name) == expected


@pytest.mark.parametrize('other', ['red  mug ', 'Red mug', 'RED MUG'])
def test_objects_whose_names_differ_in_white_space_or_case_are_one_query(other, tmp_path):
    """Otherwise each of them would be wrong for the other one's mask: questions are lower case."""
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.json', ('red mug', LEFT), (other, RIGHT))
    (image,) = read_folder(tmp_path)
    (query,) = image.queries
    assert query.text == 'red mug'
    assert query.ground_truth(H, W)[5, [5, 25]].tolist() == [1, 1]
    category = {'id': 1, 'name': 'red mug'}, {'id': 2, 'name': other}
    annotations = [
        {'id': n, 'image_id': 1, 'category_id': n, 'segmentation': [np.ravel(points).tolist()]}
        for n, points in ((1, LEFT), (2, RIGHT))
    ]
    images = [{'id': 1, 'file_name': 'a.png'}]
    content = {'images': images, 'categories': category, 'annotations': annotations}
    (tmp_path / 'i.json').write_text(json.dumps(content))
    (image,) = read_checked(f'coco:{tmp_path}/i.json:{tmp_path}', pytest.fail)
    assert [(query.text, len(query.regions)) for query in image.queries] == [('red mug', 2)]


@pytest.mark.parametrize('other', [' door', 'Door'])
def test_two_classes_of_one_name_in_a_label_map_are_one_query(other, tmp_path):
    write_image(tmp_path / 'images/training/a.jpg')
    ids = np.zeros((H, W), np.uint8)
    ids[:5], ids[5:8] = 1, 2
    (tmp_path / 'annotations/training').mkdir(parents=True)
    Image.fromarray(ids).save(tmp_path / 'annotations/training/a.png')
    (tmp_path / 'objectInfo150.txt').write_text(f'1\tdoor, double door\n2\t{other}\n')
    (image,) = read_ade20k(tmp_path)
    (query,) = image.queries
    assert query.text == 'door'
    assert query.ground_truth(H, W).sum() == 8 * W


@pytest.mark.parametrize('rows', ['1\t \n', '1\tdoor\n1\twall\n', '1\t, wall\n'])
def test_a_class_without_a_name_or_with_two_is_an_error(rows, tmp_path):
    (tmp_path / 'objectInfo150.txt').write_text(rows)
    with pytest.raises(DataError, match='class 1 has no name, or two'):
        read_ade20k(tmp_path)


@pytest.mark.parametrize('number', ['9' * 5000, '²', '١', '-1'])
def test_an_odd_number_of_a_class_or_an_instance_is_an_error(number, tmp_path):
    (tmp_path / 'objectInfo150.txt').write_text(f'{number}\tdoor\n')
    with pytest.raises(DataError, match='contains no class names'):
        read_ade20k(tmp_path)
    write_mask(tmp_path / 'ids' / '1.png')
    (tmp_path / 'ids' / 'objects.json').write_text(json.dumps({number: {'name': 'mug'}}))
    with pytest.raises(DataError, match='is no instance id; expected') as caught:
        InstanceFolder(tmp_path / 'ids')
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize('name', ['mug', 'Mug'])
def test_a_mask_for_a_name_that_the_json_file_has_is_named(name, tmp_path):
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.json', (name, RIGHT))
    write_mask(tmp_path / 'a' / 'mug.png')
    texts, (error,) = texts_and_errors(tmp_path)
    assert texts == {'a': [name]}
    assert "mug.png: there is another region of 'mug' in a.png" in error


def test_ground_truth_of_two_labels_of_one_name_is_an_error(tmp_path):
    """A label of a command is read without regard to case; one of two was taken silently."""
    write_image(tmp_path / '5.png')
    points = {'Mug': LEFT, 'mug': RIGHT, 'bowl': LEFT}
    queries = [
        AnnotatedQuery(name, False, (Polygon(name, np.array(own)),))
        for name, own in points.items()
    ]
    truth = AnnotationTruth('a', [AnnotatedImage(tmp_path / '5.png', tuple(queries))])
    with pytest.raises(DataError, match="2 different regions named 'mug'"):
        truth.mask(5, (H, W), Command(0, 'find the mug', label='mug'))
    assert truth.mask(5, (H, W), Command(0, 'find the bowl', label='BOWL'))[5, 5] == 1


# ---- labelme


def mask_in_base64(width, height):
    stream = io.BytesIO()
    Image.new('L', (width, height), 255).save(stream, 'PNG')
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize(
    ('points', 'is_used'),
    [
        ([[2, 3], [11, 8]], True),  # labelme: the last pixel belongs to the box
        ([[2, 3], [12, 9]], True),  # other programs: it does not
        ([[12, 9], [2, 3]], True),
        ([[2.4, 3.4], [11.6, 8.6]], True),
        ([[2, 3]], True),
        ([[1, 1.5], [5.5, 4]], False),  # points of an image scaled to half its size
        ([[4, 6], [22, 16]], False),  # and to twice
    ],
)
def test_a_mask_of_labelme_has_the_size_of_its_box(points, is_used, tmp_path):
    write_image(tmp_path / 'a.png')
    shape = {'label': 'mug', 'points': points, 'shape_type': 'mask'}
    content = {'shapes': [{**shape, 'mask': mask_in_base64(10, 6)}]}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    if is_used:
        (image,) = read_folder(tmp_path)
        assert image.queries[0].ground_truth(H, W).sum() == 60
    else:
        with pytest.raises(DataError, match='the mask has 10 x 6 pixels, the box of its points'):
            read_folder(tmp_path)


@pytest.mark.parametrize('width', ['40', [40], True])
def test_a_size_that_is_no_number_is_named(width, tmp_path):
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.json', ('mug', LEFT), imageWidth=width, imageHeight=H)
    with pytest.raises(DataError, match='expected the numbers 40 and 30, or null'):
        read_folder(tmp_path)


# ---- names of images


@pytest.mark.parametrize(
    ('named', 'present'),
    [('A.JPG', 'a.jpg'), ('cafe\u0301.jpg', 'caf\u00e9.jpg'), ('caf\u00e9.jpg', 'cafe\u0301.jpg')],
)
def test_an_image_that_is_there_in_another_spelling_is_named(named, present, tmp_path):
    """Windows and macOS find such a file; both spellings of "é" look the same in an error."""
    write_image(tmp_path / present)
    with pytest.raises(DataError) as caught:
        check_image(tmp_path / named, 'i.json')
    assert str(caught.value).endswith(
        f'the folder has {present!a} in place of {named!a}: rename it'
    )
    with pytest.raises(DataError, match='is missing; add it'):
        check_image(tmp_path / 'b.jpg', 'i.json')


# ---- ids


def coco(folder, image_id, category_id):
    """Write a file in COCO's format with these ids; return its data set."""
    write_image(folder / 'a.png')
    annotation = {'id': image_id, 'image_id': image_id, 'category_id': category_id}
    content = {
        'images': [{'id': image_id, 'file_name': 'a.png'}],
        'categories': [{'id': category_id, 'name': 'mug'}],
        'annotations': [{**annotation, 'segmentation': [np.ravel(LEFT).tolist()]}],
    }
    (folder / 'i.json').write_text(json.dumps(content))
    return f'coco:{folder}/i.json:{folder}'


def test_ids_as_whole_floats_are_integers(tmp_path):
    (image,) = read_checked(coco(tmp_path, 3.0, 0.0), pytest.fail)
    assert [query.text for query in image.queries] == ['mug']


@pytest.mark.parametrize('number', [1.5, '1', None, True, float('inf'), 2.0**60])
def test_other_ids_are_named(number, tmp_path):
    with pytest.raises(DataError, match=r'"categories" has id .*; expected int'):
        read_checked(coco(tmp_path, 1, number), pytest.fail)


@pytest.mark.parametrize('name', ['a.png', 'a.json', 'a/mug.png', 'explanations.json'])
def test_a_pipe_among_images_and_labels_is_not_waited_for(name, tmp_path):
    write_image(tmp_path / 'a.png')
    write_labels(tmp_path / 'a.json', ('bowl', LEFT))
    (tmp_path / 'a').mkdir()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match='but a device, pipe or socket'):
        read_folder(tmp_path)
