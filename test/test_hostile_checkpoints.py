# SPDX-License-Identifier: Apache-2.0
"""Hostile model folders: each a clear error within 10 s and 1 GB above the honest size."""

import random
import re
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden import backend
from hostile_folders import OWN, RELEASED, make_released, set_keys, weights

from lisa_ros.errors import CheckpointError
from lisa_ros.model import checkpoint, export
from lisa_ros.model.limits import Limits, free_memory
from lisa_ros.model.pickle_claims import ClaimError, read_claims
from lisa_ros.model.weight_files import load_pickle
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.process_memory import system_memory
from lisa_ros.perception.registry import load_backend

STATUS = Path('/proc/self/status')
MIB = 2**20
DTYPES = (
    torch.float8_e4m3fn,  # only in zip archives
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def memory(field):
    """Return VmHWM (highest) or VmRSS (present) of this process [bytes]."""
    return int(re.search(rf'{field}:\s+(\d+)', STATUS.read_text())[1]) * 1024


@pytest.fixture(scope='module')
def toy_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toys')
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, folder / 'own')
    return {'released': make_released(folder / 'released'), 'own': folder / 'own'}


@pytest.mark.parametrize('layout', ['released', 'own'])
def test_the_toys_load(layout, toy_folders):
    checkpoint.load(toy_folders[layout])


CASES = [('released', name) for name in RELEASED] + [('own', name) for name in OWN]


@pytest.mark.parametrize(('layout', 'name'), CASES, ids=[': '.join(case) for case in CASES])
def test_a_hostile_folder_is_a_clear_error(layout, name, toy_folders, tmp_path, monkeypatch):
    change, pattern = {'released': RELEASED, 'own': OWN}[layout][name]
    folder = shutil.copytree(toy_folders[layout], tmp_path / 'model')
    monkeypatch.chdir(tmp_path)
    change(folder)
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
    before, start = memory('VmRSS'), time.process_time()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert time.process_time() - start < 10
    assert memory('VmHWM') - before < 10**9
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert len(message) < 1000
    assert '\n' not in message
    assert 'cannot be loaded as a LISA' not in message  # the last resort names no cause
    assert not (tmp_path / 'ran').exists()


# ---- what is large or unusual, and right


def test_links_into_another_folder_are_followed(toy_folders, tmp_path):
    """The hub's cache links its files to the content, which has other names."""
    for number, path in enumerate(sorted(toy_folders['own'].iterdir())):
        (tmp_path / 'blobs').mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / 'blobs' / str(number))
        (tmp_path / 'snapshot').mkdir(exist_ok=True)
        (tmp_path / 'snapshot' / path.name).symlink_to(f'../blobs/{number}')
    checkpoint.load(tmp_path / 'snapshot')


def test_keys_that_the_library_would_believe_are_not_passed_on(toy_folders, tmp_path):
    folder = shutil.copytree(toy_folders['own'], tmp_path / 'model')
    for part in ('clip', 'llama', 'sam', 'sam.vision_config', 'sam.mask_decoder_config'):
        set_keys('config.json', part, num_labels=10**9, attn_implementation='a/kernel')(folder)
    Path('/proc/self/clear_refs').write_text('5')
    before = memory('VmRSS')
    model = checkpoint.load(folder).model
    assert memory('VmHWM') - before < 3e8
    assert model.config.to_dict() == checkpoint.load(toy_folders['own']).model.config.to_dict()


def test_limits_are_options(toy_folders):
    own = toy_folders['own']
    with pytest.raises(CheckpointError, match=r'clip\.image_size is 224; expected at most 128'):
        checkpoint.load(own, limits=Limits(input_side=128))
    with pytest.raises(CheckpointError, match=r'weights take 0\.0 GB, more than .*max_model_size'):
        load_backend(str(own), LoadOptions(device='cpu', max_model_size=1e-4))
    with pytest.raises(CheckpointError, match=r'GB are free on cpu: .*max_model_size'):
        Limits().check_memory(10**15, 'cpu', own)
    Limits(memory=2e6).check_memory(10**15, 'cpu', own)
    checkpoint.load(own, limits=Limits(input_side=256, memory=0.1))


@pytest.mark.parametrize(
    ('properties', 'reported', 'shares'),
    [
        ({'is_integrated': 1}, MIB, True),
        ({'is_integrated': 1}, 2**50, False),  # more than the system has
        ({'is_integrated': 0}, MIB, False),
        ({}, MIB, False),  # an older torch does not tell
    ],
)
def test_a_gpu_without_memory_of_its_own_has_what_the_page_cache_takes(
    monkeypatch, properties, reported, shares
):
    stubs = {
        'mem_get_info': (reported, 2**51),
        'memory_reserved': 3 * MIB,
        'memory_allocated': MIB,
        'get_device_properties': SimpleNamespace(**properties),
    }
    for name, value in stubs.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    free = free_memory('cuda:0') - 2 * MIB  # without what torch has cached
    if shares:
        assert 64 * MIB < free < system_memory().total
    else:
        assert free == reported
    Limits().check_memory(64 * MIB if shares else reported, 'cuda:0', Path('model'))
    with pytest.raises(CheckpointError, match=r'GB are free on cuda:0'):
        Limits().check_memory(2**51, 'cuda:0', Path('model'))


def test_numbers_that_overflow_in_fp16_only(toy_folders, tmp_path):
    folder = shutil.copytree(toy_folders['released'], tmp_path / 'model')
    weights(**{'model.mm_projector.bias': torch.full((64,), -1e6)})(folder)
    with pytest.raises(CheckpointError, match=r'overflows as float16: .* 1e\+06; .*bf16 or fp32'):
        checkpoint.load(folder, precision='fp16')
    checkpoint.load(folder, precision='bf16')


@pytest.mark.parametrize('zipped', [True, False])
def test_claims_are_those_of_torch(zipped, tmp_path):
    """Views, parameters, shared storages, scalars and every dtype; both formats."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = OrderedDict(
        base=base,
        view=base[1].T,
        parameter=torch.nn.Parameter(torch.ones(3)),
        scalar=torch.tensor(1.0),
        empty=torch.zeros(0, 5),
        **{str(dtype): torch.zeros(2, 3).to(dtype) for dtype in DTYPES[0 if zipped else 1 :]},
    )
    state._metadata = OrderedDict({'': {'version': 1}})
    torch.save(state, tmp_path / 'a.bin', _use_new_zipfile_serialization=zipped)
    claims = read_claims(tmp_path / 'a.bin')
    assert {name: claim.shape for name, claim in claims.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert {name: claim.bytes for name, claim in claims.items()} == {
        name: tensor.nbytes for name, tensor in state.items()
    }
    loaded = load_pickle(tmp_path / 'a.bin')
    assert torch.equal(loaded['view'], base[1].T)


@pytest.mark.parametrize('seed', range(3))
def test_a_damaged_pickle_is_refused_or_read_as_it_claims(seed, tmp_path):
    """100 files with a few wrong bytes: what is accepted has the shapes that were checked."""
    path, generator = tmp_path / 'a.bin', random.Random(seed)
    torch.save({f'w{i}': torch.zeros(i, 3) for i in range(1, 5)}, path)
    content = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            claims = read_claims(path)
            state = load_pickle(path)
        except (ClaimError, CheckpointError):
            continue
        assert {name: claim.shape for name, claim in claims.items()} == {
            name: tuple(tensor.shape) for name, tensor in state.items()
        }
