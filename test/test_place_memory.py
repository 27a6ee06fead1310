# SPDX-License-Identifier: Apache-2.0
"""Where objects were seen last: merging, moved objects, ages, limits, and the file."""

import json
import math

import numpy as np
import pytest

from lisa_ros.errors import DataError
from lisa_ros.session.place_file import read_places, write_places
from lisa_ros.session.place_memory import (
    Place,
    PlaceMemory,
    PlaceMemoryOptions,
    asked_name,
    asks_about_the_past,
    is_same_name,
)

SECOND = 10**9
OPTIONS = PlaceMemoryOptions(merge_distance=0.15, max_places=100, max_age=0.0)


def seen(name, x, second, y=0.0, **fields):
    return Place(name, (x, y, 0.8), second * SECOND, 0.9, **fields)


def positions(memory, name='', now=10**6):
    return sorted(round(place.position[0], 3) for place in memory.recall(name, now * SECOND))


def test_a_sighting_nearby_updates_the_place_and_keeps_the_longer_name():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('red mug', 1.0, 1, thumbnail=b'jpeg')])
    memory.add([seen('the mug', 1.1, 5)])
    (place,) = memory.places(6 * SECOND)
    assert (place.name, place.position[0], place.stamp) == ('red mug', 1.1, 5 * SECOND)
    assert (place.sightings, place.thumbnail) == (2, b'jpeg')
    assert memory.changes == 2


def test_an_object_that_was_moved_has_one_place():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('red mug', 1.0, 1)])
    memory.add([seen('red mug', 3.0, 2)])
    assert positions(memory) == [3.0]


def test_objects_that_are_seen_at_once_have_a_place_each():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('mug', 1.0, 1), seen('mug', 2.0, 1)])
    assert positions(memory) == [1.0, 2.0]
    memory.add([seen('mug', 2.05, 2)])  # the other one is out of sight
    assert positions(memory) == [1.0, 2.05]
    memory.add([seen('mug', 5.0, 3)])  # one has moved: the one that was seen longest ago
    assert positions(memory) == [2.05, 5.0]
    memory.add([seen('mug', x, 4) for x in (2.0, 5.0, 7.0)])
    assert positions(memory) == [2.0, 5.0, 7.0]


def test_other_names_are_other_objects():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('red mug', 1.0, 1), seen('blue mug', 1.1, 1), seen('bowl', 1.0, 1)])
    assert len(memory.places(SECOND)) == 3
    assert [place.name for place in memory.recall('where is the blue mug?', SECOND)] == [
        'blue mug'
    ]
    assert len(memory.recall('the mugs', SECOND)) == 2
    assert memory.recall('the plate', SECOND) == []


def test_a_name_that_fits_several_objects_replaces_none():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('red mug', 1.0, 1)])
    memory.add([seen('blue mug', 2.0, 2)])
    memory.add([seen('mug', 5.0, 3)])
    assert positions(memory) == [1.0, 2.0, 5.0]
    memory.add([seen('mug', 1.05, 4)])
    assert positions(memory) == [1.05, 2.0, 5.0]


def test_an_answer_about_an_old_image_replaces_nothing():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('red mug', 1.0, 10)])
    memory.add([seen('red mug', 1.1, 5)])
    memory.add([seen('red mug', 7.0, 5)])
    assert positions(memory) == [1.0]


def test_places_of_the_future_count_as_seen_now():
    memory = PlaceMemory(PlaceMemoryOptions(0.15, 2, 60.0))
    memory.add([seen('red mug', 1.0, 1000), seen('bowl', 2.0, 1000)])
    assert [place.stamp for place in memory.places(3 * SECOND)] == [3 * SECOND] * 2
    memory.add([seen('red mug', 5.0, 4)])  # the simulation has begun again
    assert positions(memory, now=4) == [2.0, 5.0]
    assert positions(memory, now=65) == []


def test_a_simulation_that_has_not_started_forgets_nothing():
    memory = PlaceMemory(PlaceMemoryOptions(0.15, 2, 60.0), [seen('red mug', 1.0, 1000)])
    assert [place.stamp for place in memory.places(0)] == [1000 * SECOND]
    assert positions(memory, now=1030) == [1.0]
    assert memory.changes == 0


def test_a_clock_that_starts_in_the_past_forgets_nothing():
    today = 1_790_000_000
    memory = PlaceMemory(PlaceMemoryOptions(0.15, 2, 60.0), [seen('red mug', 1.0, today)])
    assert [place.stamp for place in memory.places(5 * SECOND)] == [5 * SECOND]  # 1970
    memory.places(7 * SECOND)
    memory.add([seen('red mug', 1.1, 6)])  # the image is older than the last look at the places
    assert positions(memory, now=7) == [1.1]
    memory = PlaceMemory(OPTIONS, [seen('red mug', 1.0, today)])
    for moment in (7 * SECOND, 7 * SECOND - 1000):  # threads ask in any order
        memory.places(moment)
    assert [place.stamp for place in memory.stored()] == [today * SECOND]
    memory = PlaceMemory(PlaceMemoryOptions(0.15, 2, 60.0), [seen('red mug', 1.0, today)])
    memory.places(5 * SECOND)
    assert positions(memory, now=today + 30) == [1.0]  # the clock was set
    assert positions(memory, now=today + 61) == []


def test_a_part_of_an_object_at_the_edge_of_the_image_does_not_move_its_place():
    memory = PlaceMemory(OPTIONS)
    memory.add([seen('book', 1.08, 1, is_cut=True, thumbnail=b'part')])
    memory.add([seen('book', 1.0, 2, thumbnail=b'all')])
    memory.add([seen('book', 1.08, 3, is_cut=True, thumbnail=b'part')])
    (place,) = memory.places(3 * SECOND)
    assert place.position[0] == 1.0
    assert (place.stamp, place.sightings, place.thumbnail) == (3 * SECOND, 3, b'all')
    memory.add([seen('book', 1.1, 4, is_cut=True)])
    assert positions(memory) == [1.0]
    memory.add([seen('book', 5.0, 5, is_cut=True)])  # it has moved
    assert positions(memory) == [5.0]


def test_twelve_objects_on_a_drive_around_three_tables():
    """Noise of 3 cm, two objects move, each answer shows those of one table."""
    rng = np.random.default_rng(0)
    memory = PlaceMemory(OPTIONS)
    names = [f'{colour} {kind}' for kind in ('mug', 'bowl', 'box', 'can')
             for colour in ('red', 'blue', 'white')]  # fmt: skip
    true = {name: np.array([4.0 * (i % 3), 0.4 * (i // 3), 0.8]) for i, name in enumerate(names)}
    for second in range(180):
        if second == 90:
            true['red mug'], true['blue can'] = np.array([4.2, 1.9, 0.8]), np.array([8.3, 2, 0.8])
        table = 4.0 * (second // 10 % 3)
        visible = [name for name in names if abs(true[name][0] - table) < 1]
        for name in rng.permutation(visible):
            place = true[name] + rng.normal(0, 0.03, 3)
            memory.add([Place(str(name), tuple(map(float, place)), second * SECOND, 0.9)])
    found = {place.name: place for place in memory.places(180 * SECOND)}
    assert sorted(found) == sorted(names)
    errors = [math.dist(found[name].position, true[name]) for name in names]
    assert sum(error < 0.1 for error in errors) >= 10
    assert max(errors) < 0.2


def test_places_grow_old_and_their_number_is_limited():
    memory = PlaceMemory(PlaceMemoryOptions(0.15, 3, 10.0))
    for second in range(5):
        memory.add([seen(f'thing{second} can', second, second)])
    assert positions(memory, now=5) == [2, 3, 4]
    assert positions(memory, now=13) == [3, 4]
    changes = memory.changes
    assert positions(memory, now=100) == []
    assert memory.changes == changes + 1
    memory.set_options(OPTIONS)
    memory.add([seen('mug', 1, 1)])
    assert positions(memory) == [1]


@pytest.mark.parametrize(
    ('question', 'name', 'is_past'),
    [
        ('where did you last see the red mug?', 'red mug', True),
        ('Where have you seen my keys', 'keys', True),
        ('where did you see the glasses the last time?', 'glasses', True),
        ('where was the bowl?', 'bowl', True),
        ('have you seen the glass?', 'glass', True),
        ('where is the mug?', 'mug', False),
        ('the mugs', 'mugs', False),
        ('segment the last mug', 'segment last mug', False),
        ('', '', False),
    ],
)
def test_the_name_is_taken_from_the_question(question, name, is_past):
    assert asked_name(question) == name
    assert asks_about_the_past(question) is is_past


def test_names():
    assert is_same_name('the red mug', 'Mug')
    assert is_same_name('mugs', 'a mug')
    assert not is_same_name('red mug', 'blue mug')
    assert not is_same_name('mug holder', 'mug')
    assert is_same_name('mug on the left', 'the mug')
    assert not is_same_name('mug on the table', 'table')
    assert not is_same_name('', 'mug')


@pytest.mark.parametrize(
    ('several', 'one'),
    [
        *(('boxes', 'box'), ('glasses', 'glass'), ('batteries', 'battery'), ('dishes', 'dish')),
        *(('vases', 'vase'), ('houses', 'house'), ('axes', 'axe'), ('suitcases', 'suitcase')),
        *(('cookies', 'cookie'), ('tomatoes', 'tomato'), ('shoes', 'shoe'), ('buses', 'bus')),
        *(('knives', 'knife'), ('shelves', 'shelf'), ('gloves', 'glove'), ('lenses', 'lens')),
    ],
)
def test_a_plural_is_the_name_of_its_singular(several, one):
    assert is_same_name(several, one)


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        *(('top left drawer', 'top right drawer'), ('built-in oven', 'built-in dishwasher')),
        *(('front left wheel', 'front right door'), ('plug-in charger', 'plug-in lamp')),
        *(('blue right glove', 'blue left shoe'), ('base', 'bass'), ('vase', 'van')),
        *(('top left-hand drawer', 'top right-hand drawer'), ('salt and pepper', 'salt')),
        *(('robot left hand', 'robot right hand'), ('power on button', 'power off button')),
    ],
)
def test_a_word_for_a_side_may_belong_to_the_name(first, second):
    assert not is_same_name(first, second)


@pytest.mark.parametrize(
    'place',
    [
        *('left', 'on the left', 'left of the box', 'right next to it', 'right now', 'right here'),
        *('left side', 'right-hand side', 'left and right', 'right against the wall', 'there'),
        *('inside the cupboard', 'underneath the lamp', 'right underneath the lamp', 'now'),
    ],
)
def test_a_place_does_not_belong_to_the_name(place):
    assert is_same_name(f'mug {place}', 'red mug')


def test_the_file_keeps_all_and_an_interrupted_write_keeps_the_old_one(tmp_path):
    path = tmp_path / 'places.json'
    assert read_places(path, 'map') == []
    places = [seen('red mug', 1.25, 7, camera='front', thumbnail=b'\xff\xd8', sightings=3)]
    write_places(path, 'map', places)
    assert read_places(path, 'map') == places
    assert not list(tmp_path.glob('*.new'))
    with pytest.raises(DataError, match=r"has places in 'map'; expected 'odom'"):
        read_places(path, 'odom')
    with pytest.raises(DataError, match='cannot be written'):
        write_places(tmp_path / 'none' / 'places.json', 'map', places)


@pytest.mark.parametrize(
    'change',
    [
        {'position': [1, 2]}, {'position': ['a', 'b', 'c']}, {'position': [1, 2, 1e9]},
        {'stamp': '-1'}, {'stamp': '9' * 30}, {'stamp': 'x'}, {'sightings': -1},
        {'thumbnail': '!'}, {'name': 3}, {'confidence': None},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_names_it(change, tmp_path):
    path = tmp_path / 'places.json'
    write_places(path, 'map', [seen('mug', 1, 1)])
    content = json.loads(path.read_text())
    content['places'][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'places\.json'):
        read_places(path, 'map')
    path.write_text('{"frame": "map"')
    with pytest.raises(DataError, match=r'places\.json'):
        read_places(path, 'map')
