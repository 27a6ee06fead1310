# SPDX-License-Identifier: Apache-2.0
"""Where model files come from: no download unasked, checksums, lock files, unreadable folders."""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import huggingface_hub.constants
import pytest
from golden import DATA, backend
from hostile_folders import set_keys

from lisa_ros import cli
from lisa_ros.doctor import model_files
from lisa_ros.doctor.weights import ModelOptions
from lisa_ros.errors import CheckpointError
from lisa_ros.model import checkpoint, checksums, export, from_llava
from lisa_ros.model.checksums import Lock, check_sha256, file_checksums, folder_checksum
from lisa_ros.model.origin import Origin
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.registry import load_backend
from lisa_ros.ros.configuration import load_model
from lisa_ros.settings import Settings
from lisa_ros.tracking.video_model import load_video_tracker

CKPT, CLIP = DATA / 'ckpt_256', DATA / 'clip_256'
LOG = logging.getLogger(__name__)
TOWER = 'openai/clip-vit-large-patch14'  # as the toy's config.json names it
CURES = r'vision_tower:=.*--vision-tower.*allow_download:=true.*--allow-download'


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network: the test fails on any connection."""
    cache, attempts = tmp_path / 'hub', []

    def refuse(*arguments, **_):
        attempts.append(arguments[-1])
        raise OSError('no network in this test')

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, refuse)
    hub = type('Hub', (), {'cache': cache, 'attempts': attempts})
    yield hub
    assert not attempts, f'the network was contacted: {attempts}'


def fill_cache(hub, name, source, revision='0' * 40):
    """Put a folder into the hub's cache, as a download does."""
    folder = hub.cache / f'models--{name.replace("/", "--")}'
    (folder / 'refs').mkdir(parents=True, exist_ok=True)
    (folder / 'refs' / 'main').write_text(revision)
    return shutil.copytree(source, folder / 'snapshots' / revision)


# ---- downloads


def test_a_hub_id_in_a_local_folder_is_not_downloaded_unasked():
    with pytest.raises(CheckpointError, match=rf'{TOWER}.*{CKPT}/config\.json names.*{CURES}'):
        checkpoint.load(CKPT)


def test_nor_for_a_llava_the_node_or_the_command_line(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=CURES):
        load_model(Settings(model=str(CKPT), device='cpu'), LOG)
    assert cli.main(['segment', str(DATA / 'images' / 'coffee.webp'), 'x', '--model', str(CKPT)])
    assert 'allow_download:=true' in capsys.readouterr().err
    from test_checkpoint import write_llava_and_sam

    folder, sam = write_llava_and_sam(tmp_path / 'llava')
    with pytest.raises(CheckpointError, match=CURES):
        from_llava.load_llava(folder, sam=sam)


def test_what_is_in_the_cache_is_used_without_the_network(hub):
    fill_cache(hub, TOWER, CLIP)
    assert checkpoint.load(CKPT).vision_tower == TOWER


def test_a_cache_without_weights_counts_as_empty(hub):
    (fill_cache(hub, TOWER, CLIP) / 'pytorch_model.bin').unlink()
    with pytest.raises(CheckpointError, match=CURES):
        checkpoint.load(CKPT)


@pytest.mark.parametrize(
    'options',
    [
        {'allow_download': True},
        {'vision_tower': TOWER},
    ],
)
def test_a_download_that_was_asked_for_is_tried(options, hub):
    with pytest.raises(CheckpointError, match=rf'{TOWER}: no such folder, and the download'):
        load_backend(str(CKPT), LoadOptions(device='cpu', **options))
    assert hub.attempts
    hub.attempts.clear()


def test_a_hub_id_allows_the_download_of_its_vision_tower(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    fill_cache(hub, 'xinlai/LISA-7B-v1', CKPT)
    with pytest.raises(CheckpointError, match=rf'{TOWER}: no such folder, and the download'):
        checkpoint.load('xinlai/LISA-7B-v1')
    fill_cache(hub, TOWER, CLIP)
    assert checkpoint.load('xinlai/LISA-7B-v1').vision_tower == TOWER


def test_a_local_tracker_contacts_nobody(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'sam2_video'}))
    with pytest.raises(CheckpointError, match='no weights'):
        load_video_tracker('sam2', tmp_path, 'cpu')


def test_the_bundled_model_contacts_nobody():
    load_backend('lisa-tabletop', LoadOptions(device='cpu'))


# ---- checksums


@pytest.fixture
def model(tmp_path):
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path / 'toy')
    return tmp_path / 'toy'


def test_the_checksum_is_that_of_sha256sum(model):
    (model / 'README.md').write_text('not read')
    shutil.copytree(CLIP, model / 'clip')
    command = checksums.__doc__.split('cd FOLDER && ')[1].split('\n\n')[0]
    run = subprocess.run(
        ['sh', '-c', command], cwd=model, capture_output=True, text=True, check=True
    )
    assert folder_checksum(file_checksums(model)) == run.stdout.split()[0]


def test_a_model_with_another_checksum_is_refused(model, capsys):
    checksums = file_checksums(model)
    for accepted in (folder_checksum(checksums), checksums['model.safetensors'].upper()):
        load_backend(str(model), LoadOptions(device='cpu', sha256=accepted))
    for other, isolation in (('0' * 64, 'process'), (checksums['config.json'], 'thread')):
        settings = Settings(
            model=str(model), device='cpu', model_sha256=other, isolation=isolation
        )
        with pytest.raises(CheckpointError, match=rf'has the SHA-256 \w+, expected {other}'):
            load_model(settings, LOG)
    for wrong in ('abc', 'sha256:' + '0' * 64):
        with pytest.raises(CheckpointError, match='expected 64 hexadecimal digits'):
            check_sha256(model, wrong)
    image = str(DATA / 'images' / 'coffee.webp')
    assert cli.main(['segment', image, 'x', '--model', str(model), '--sha256', '0' * 64]) == 1
    assert 'has the SHA-256' in capsys.readouterr().err


def test_a_changed_file_is_refused_before_it_is_read(model):
    digest = folder_checksum(file_checksums(model))
    (model / 'config.json').write_text('[' * 10**6)
    with pytest.raises(CheckpointError, match='has the SHA-256'):
        checkpoint.load(model, origin=Origin(sha256=digest))


# ---- lock files


def test_a_lock_file_pins_every_file(model, tmp_path, capsys):
    lock = tmp_path / 'models.lock.json'
    assert cli.main(['checksum', str(model), '--write-lock', str(lock)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f'{folder_checksum(file_checksums(model))}  {model}'
    content = json.loads(lock.read_text())
    digest = hashlib.sha256((model / 'config.json').read_bytes()).hexdigest()
    assert content['models']['toy']['files']['config.json'] == digest
    options = LoadOptions(device='cpu', lock=str(lock))
    load_backend(str(model), options)
    moved = shutil.copytree(model, tmp_path / 'elsewhere' / 'toy')
    load_backend(str(moved), options)
    set_keys('config.json', refine=True)(model)
    with pytest.raises(CheckpointError, match=r'differs from .*config\.json changed'):
        load_backend(str(model), options)
    shutil.copy(moved / 'config.json', model)
    (model / 'model_additions.safetensors').write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'model_additions\.safetensors not in the lock'):
        load_backend(str(model), options)
    (model / 'tokenizer.model').unlink()
    with pytest.raises(CheckpointError, match=r'tokenizer\.model missing'):
        load_backend(str(model), options)
    with pytest.raises(CheckpointError, match=r'no entry for .*lisa-tabletop, only for toy'):
        load_model(Settings(device='cpu', model_lock=str(lock), isolation='thread'), LOG)


def test_a_lock_file_pins_the_vision_tower_and_the_sam_too(tmp_path, capsys):
    lock = tmp_path / 'lock.json'
    for path in (CKPT, CLIP):
        with pytest.raises(CheckpointError, match=r'no entry for|no such file'):
            checkpoint.load(CKPT, vision_tower=CLIP, origin=Origin(lock=Lock.read(lock)))
        cli.main(['checksum', str(path), '--write-lock', str(lock)])
    origin = Origin(lock=Lock.read(lock))
    checkpoint.load(CKPT, vision_tower=CLIP, origin=origin)
    sam = tmp_path / 'sam.pth'
    sam.write_bytes(b'x')
    with pytest.raises(CheckpointError, match=r'no entry for .*sam\.pth'):
        checkpoint.load(CKPT, vision_tower=CLIP, sam=sam, origin=origin)
    cli.main(['checksum', str(sam), '--write-lock', str(lock)])
    sam.write_bytes(b'y')
    with pytest.raises(CheckpointError, match=r'sam\.pth changed'):
        checkpoint.load(CKPT, vision_tower=CLIP, sam=sam, origin=Origin(lock=Lock.read(lock)))


def test_a_hub_id_is_loaded_at_the_locked_revision(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    name, lock = 'someone/LISA', tmp_path / 'lock.json'
    first = fill_cache(hub, name, CKPT, 'a' * 40)
    cli.main(['checksum', name, '--write-lock', str(lock)])
    cli.main(['checksum', str(CLIP), '--write-lock', str(lock)])
    assert json.loads(lock.read_text())['models'][name]['revision'] == 'a' * 40
    newer = fill_cache(hub, name, CKPT, 'b' * 40)  # a new version on the hub
    set_keys('config.json', rms_norm_eps=0.1)(newer)
    origin = Origin(lock=Lock.read(lock))
    assert origin.model_folder(name) == first
    loaded = checkpoint.load(name, vision_tower=CLIP, origin=origin)
    assert loaded.model.config.llama.rms_norm_eps == 1e-5
    copy = shutil.copytree(first, tmp_path / 'LISA')  # a copy under the repository's own name
    checkpoint.load(copy, vision_tower=CLIP, origin=origin)


def test_the_doctor_checks_a_hub_id_at_the_locked_revision(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    name, lock = 'someone/LISA', tmp_path / 'lock.json'
    locked = fill_cache(hub, name, CKPT, 'a' * 40)
    for model in (name, str(CLIP)):
        cli.main(['checksum', model, '--write-lock', str(lock)])
    (hub.cache / 'models--someone--LISA' / 'refs' / 'main').unlink()  # downloaded by revision

    def check():
        options = ModelOptions(name, str(CLIP), lock=str(lock))
        return model_files.check_files(asdict(options))

    assert 'checksums are right' in check()['observed']
    (locked / 'config.json').write_text('{}')
    assert 'config.json changed' in check()['observed']
    shutil.rmtree(locked)
    assert 'not in the local cache' in check()['observed']


def test_the_doctor_downloads_nothing(hub):
    options = asdict(ModelOptions(str(CKPT), TOWER))  # the user may have a node download it
    assert 'not downloaded without permission' in model_files.check_files(options)['observed']


def test_a_link_to_a_model_is_locked_under_its_own_name(model, tmp_path, capsys):
    lock, link = tmp_path / 'lock.json', tmp_path / 'link'
    link.symlink_to(model)
    assert cli.main(['checksum', str(link), '--write-lock', str(lock)]) == 0
    load_backend(str(link), LoadOptions(device='cpu', lock=str(lock)))
    with pytest.raises(CheckpointError, match='no entry for'):
        load_backend(str(model), LoadOptions(device='cpu', lock=str(lock)))


@pytest.mark.parametrize('tower', ['../clip', 'link'])
def test_a_vision_tower_outside_of_the_model_has_an_entry_of_its_own(tower, tmp_path, capsys):
    lock, folder = tmp_path / 'lock.json', tmp_path / 'toy'
    shutil.copytree(CKPT, folder)
    shutil.copytree(CLIP, tmp_path / 'clip')
    (folder / 'link').symlink_to(tmp_path / 'clip')
    set_keys('config.json', mm_vision_tower=tower)(folder)
    cli.main(['checksum', str(folder), '--write-lock', str(lock)])
    with pytest.raises(CheckpointError, match=rf'no entry for .*{tower}'):
        checkpoint.load(folder, origin=Origin(lock=Lock.read(lock)))
    cli.main(['checksum', str(folder / tower), '--write-lock', str(lock)])
    loaded = checkpoint.load(folder, origin=Origin(lock=Lock.read(lock)))
    assert loaded.vision_tower == str(tmp_path / 'clip')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'lisa_ros_lock is missing; expected an integer'),
        ({'lisa_ros_lock': 2, 'models': {}}, 'lisa_ros_lock is 2'),
        ({'lisa_ros_lock': 1, 'models': []}, r'models is \[\]; expected an object'),
        ({'lisa_ros_lock': 1, 'models': {'a': {}}}, r'models\.a\.files is missing'),
        (
            {'lisa_ros_lock': 1, 'models': {'a': {'files': {'b': 'c'}}}},
            r"models\.a\.files\.b is 'c'",
        ),
        (
            {'lisa_ros_lock': 1, 'models': {'a': {'files': {}, 'revision': 1}}},
            r'models\.a\.revision is 1',
        ),
    ],
)
def test_a_file_that_is_no_lock_file_is_refused(content, message, tmp_path):
    (tmp_path / 'lock.json').write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf'lock\.json: {message}'):
        Lock.read(tmp_path / 'lock.json')


# ---- unreadable is not missing


@contextmanager
def as_other_user():
    """Act as a user without rights, so that root is refused, too."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture(scope='module')
def imported():
    """Import what loading imports: another user may not read the modules' files."""
    checkpoint.load(CKPT, vision_tower=CLIP)


@pytest.fixture
def folders(imported):
    """Copies of the toy and of its CLIP in a folder that every user may enter."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name, source in (('toy', CKPT), ('clip', CLIP), ('closed/toy', CKPT)):
        shutil.copytree(source, root / name)
    yield root
    subprocess.run(['chmod', '-R', 'u+rwX', root], check=True)
    shutil.rmtree(root)


@pytest.mark.parametrize('mode', [0o000, 0o600, 0o100])
def test_a_folder_that_may_not_be_read(mode, folders):
    (folders / 'toy').chmod(mode)
    with as_other_user(), pytest.raises(CheckpointError) as caught:
        checkpoint.load(folders / 'toy', vision_tower=folders / 'clip')
    assert 'permission denied for user' in str(caught.value)
    assert f'chmod -R a+rX {folders}/toy' in str(caught.value)
    assert 'hub' not in str(caught.value)


@pytest.mark.parametrize(
    'name', ['config.json', 'pytorch_model.bin', 'tokenizer.model', 'tokenizer_config.json']
)
def test_a_file_that_may_not_be_read(name, folders):
    path = folders / 'toy' / name
    path.chmod(0)
    with as_other_user(), pytest.raises(CheckpointError) as caught:
        checkpoint.load(folders / 'toy', vision_tower=folders / 'clip')
    assert f'{path}: permission denied' in str(caught.value)
    assert f'chmod -R a+rX {path}' in str(caught.value)


def test_a_folder_in_one_that_may_not_be_entered(folders):
    toy, clip, closed = folders / 'toy', folders / 'clip', folders / 'closed'
    closed.chmod(0)
    with as_other_user():
        for load in (
            lambda: checkpoint.load(closed / 'toy'),
            lambda: load_backend(str(closed / 'toy'), LoadOptions(device='cpu')),
            lambda: checkpoint.load(toy, vision_tower=closed / 'toy'),
            lambda: checkpoint.load(toy, vision_tower=clip, sam=closed / 'toy' / 'sam.pth'),
            lambda: load_video_tracker('sam2', closed / 'toy', 'cpu'),
        ):
            with pytest.raises(CheckpointError, match=rf'permission denied.*chmod .* {closed}$'):
                load()


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('/no/such/folder', 'no such folder, and not a hub id'),
        ('a' * 5000, 'File name too long'),
        ('a\0b', 'null'),
        ('~nobody_here/x', 'home'),
        ('', 'no config.json|no such folder|is not a LISA'),
        (f'{CKPT}/config.json/x', 'no such folder'),
    ],
)
def test_a_name_that_is_no_folder(name, message):
    with pytest.raises(CheckpointError, match=message):
        load_backend(name, LoadOptions(device='cpu'))
