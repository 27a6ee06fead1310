# SPDX-License-Identifier: Apache-2.0
"""What is known of a prompt's beginning."""

import torch

from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX as IMAGE
from lisa_ros.model.prefix_cache import MAX_PROMPTS, PrefixCache, PromptKey

TOKENS = 10  # of an image


def key(ids, image='first'):
    return PromptKey(tuple(ids), image, TOKENS)


def written(length, value=0.0):
    storage = torch.full((1, 2, 1, 1, length + 4, 2), value)
    storage[..., 0] = torch.arange(length + 4)  # each position has its number
    return KeyValues(storage, length)


def test_positions_count_the_image():
    prompt = key([1, 5, IMAGE, 6, 7])
    assert [prompt.positions(count) for count in range(6)] == [0, 1, 2, 12, 13, 14]
    assert prompt.common_ids(key([1, 5, IMAGE, 6, 8])) == 4
    assert prompt.common_ids(key([1, 5, IMAGE, 6, 8], 'second')) == 2
    assert prompt.common_ids(key([1])) == 1


def test_the_longest_beginning_is_found_and_copied():
    cache, whole = PrefixCache(), key([1, 5, IMAGE, 6, 7, 20, 21])
    cache.add(whole, written(16))
    found = cache.find(key([1, 5, IMAGE, 6, 9]), max_positions=13, capacity=40)
    assert (found.length, found.capacity) == (13, 40)
    found.write(0, *torch.zeros(2, 1, 1, 5, 2))
    again = cache.find(whole, max_positions=99, capacity=40)
    assert again.length == 16
    assert again.write(0, *torch.zeros(2, 1, 1, 1, 2))[0][0, 0, :16, 0].tolist() == [*range(16)]
    assert cache.find(whole, max_positions=12, capacity=40).length == 12
    assert cache.find(key([1, 5, IMAGE, 6], 'second'), 13, 40) is None  # two positions: too few
    cache.clear()
    assert cache.find(whole, 99, 40) is None


def test_a_view_has_no_memory_of_its_own_and_changes_nothing():
    cache, whole = PrefixCache(), key([1, 5, IMAGE, 6, 7, 20, 21])
    cache.add(whole, written(16))
    view = cache.view(whole, 13)
    assert (view.length, view.capacity) == (13, 13)
    memory = [own.view(13)._storage.data_ptr() for own in (view, cache.view(whole, 99))]
    assert memory[0] == memory[1]
    view.write(0, *torch.zeros(2, 1, 1, 3, 2))  # into memory of its own
    kept = cache.find(whole, 99, 40).write(0, *torch.zeros(2, 1, 1, 1, 2))[0]
    assert kept[0, 0, :16, 0].tolist() == [*range(16)]


def test_a_longer_prompt_replaces_its_beginning_and_the_limit_holds():
    cache = PrefixCache(max_bytes=written(30).bytes_per_position * 30)
    cache.add(key([1, 5, IMAGE, 6]), written(13))
    cache.add(key([1, 5, IMAGE, 6, 7]), written(14))
    assert (cache.use.prompts, cache.use.bytes) == (1, 14 * 16)
    cache.add(key([1, 5, IMAGE, 6], 'second'), written(13))
    assert cache.use.prompts == 2
    cache.find(key([1, 5, IMAGE, 6, 8]), 13, 20)  # used: it stays
    cache.add(key([1, 5, IMAGE, 6], 'third'), written(13))
    assert cache.use.prompts == 2
    assert cache.find(key([1, 5, IMAGE, 6], 'second'), 13, 20) is None
    assert cache.use.bytes <= cache.use.limit
    cache.add(key([1, *range(100, 140), IMAGE]), written(51))  # larger than the limit
    assert cache.use.prompts == 2
    empty = PrefixCache(max_bytes=0)
    empty.add(key([1, 5, IMAGE, 6]), written(13))
    assert empty.use.prompts == 0


def test_tokens_that_were_not_read_are_not_kept():
    cache = PrefixCache()
    cache.add(key([1, 5, IMAGE, 6, 7, 8]), written(13))  # the last two came without a pass
    assert cache.find(key([1, 5, IMAGE, 6, 7, 8]), 99, 40).length == 13


def test_a_stream_of_images_does_not_fill_the_memory():
    cache = PrefixCache()
    for number in range(MAX_PROMPTS + 5):
        cache.add(key([1, 5, IMAGE, 6], image=number), written(13))
    assert cache.use.prompts == MAX_PROMPTS
    assert cache.find(key([1, 5, IMAGE, 6], image=4), 13, 20) is None
    assert cache.find(key([1, 5, IMAGE, 6], image=5), 13, 20).length == 13
