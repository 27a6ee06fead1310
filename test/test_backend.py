# SPDX-License-Identifier: Apache-2.0
"""The Backend protocol: models by scheme, regions, and what every backend keeps."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scripted_backend
from scripted_backend import ScriptedBackend

from lisa_ros.errors import ImageError, SettingsError
from lisa_ros.perception import registry
from lisa_ros.perception.backend import InferenceOptions, LoadOptions, Query
from lisa_ros.perception.roi import OUTSIDE_LOGIT, stream_in_region
from lisa_ros.results import Dialogue, MaskReady, Status, Token

IMAGE = np.zeros((6, 8, 3), np.uint8)
IMAGE[4:, 3:5] = 255


def answer(backend, query, image=IMAGE, cancel=None):
    return list(
        stream_in_region(backend, image, query, InferenceOptions(), cancel or threading.Event())
    )


def test_a_scheme_selects_its_loader(tmp_path):
    script = tmp_path / 'script.json'
    script.write_text(json.dumps({'': {'answer': 'There.', 'masks': 'all'}}))
    backend = registry.load_backend(f'scripted:{script}', LoadOptions())
    result = answer(backend, Query('anything'))[-1].result
    assert (result.answer, result.status) == ('There.', Status.FOUND)
    assert result.masks.all()
    assert (result.details, result.token_ids, result.score_features) == (None, (), ())


def test_the_error_of_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r'"vlm:" is not a registered.*"scripted:"'):
        registry.load_backend('vlm:gpt', LoadOptions())


@pytest.mark.parametrize('scheme', ['', 'C', 'Http', 'vlm:'])
def test_a_scheme_has_a_form(scheme):
    with pytest.raises(SettingsError, match='is not a scheme'):
        registry.register_backend(scheme, scripted_backend.load)


def install(folder, scheme, source):
    """Install a package with one module and the entry point of a scheme, as pip does."""
    (folder / f'{scheme}_package.py').write_text(source)
    info = folder / f'{scheme}_package-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {scheme}_package\nVersion: 1.0\n'
    )
    (info / 'entry_points.txt').write_text(
        f'[lisa_ros.backends]\n{scheme} = {scheme}_package:load\n'
    )


def test_an_installed_package_provides_a_scheme(tmp_path, monkeypatch):
    install(tmp_path, 'toy', 'def load(rest, options):\n    return rest, options.device\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, '_loaders', {})
    assert registry.load_backend('toy:x', LoadOptions(device='cpu')) == ('x', 'cpu')
    with pytest.raises(SettingsError, match='registered: "http:", "https:", "toy:"'):
        registry.load_backend('vlm:gpt', LoadOptions())
    registry.register_backend('toy', lambda rest, options: 'this process')
    assert registry.load_backend('toy:x', LoadOptions()) == 'this process'


@pytest.mark.parametrize('source', ['import no_such_module', 'x = 1', '1 / 0'])
def test_a_package_that_cannot_be_imported_is_an_error(source, tmp_path, monkeypatch):
    install(tmp_path, 'broken', source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'broken_package', raising=False)
    with pytest.raises(SettingsError, match='"broken:": broken_package:load cannot be imported'):
        registry.load_backend('broken:x', LoadOptions())


def test_another_process_finds_an_installed_scheme(tmp_path):
    """As the node and the workers of Ray do."""
    install(tmp_path, 'far', 'def load(rest, options):\n    return rest\n')
    code = """
from lisa_ros.perception import backend, registry
assert registry.load_backend('far:x', backend.LoadOptions()) == 'x'
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, 'PYTHONPATH': path}
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60, env=environment)


def test_the_protocol_and_the_registry_import_no_torch():
    code = """
import sys
import lisa_ros.perception.backend, lisa_ros.perception.registry, lisa_ros.perception.roi
assert not {'torch', 'transformers'} & set(sys.modules)
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_without_a_region_the_stream_is_the_backend_s():
    backend = ScriptedBackend()
    token, mask, done = answer(backend, Query('bright objects'))
    assert token == Token('Sure.')
    assert mask.mask.sum() == 4
    assert np.array_equal(done.result.masks, mask.mask[None])


def test_a_region_is_cropped_and_its_masks_are_pasted_back():
    backend = ScriptedBackend()
    shown = np.zeros((1, 6, 8), bool)
    shown[0, 4, 3] = True
    query = Query('found', Dialogue(shown=shown), explain=True, region=(3, 4, 2, 2))
    _, mask, done = answer(backend, query)
    ((cropped_query, _),) = backend.calls
    assert cropped_query.region is None
    assert cropped_query.explain
    assert cropped_query.dialogue.shown.tolist() == [[[True, False], [False, False]]]
    assert isinstance(mask, MaskReady)
    assert mask.mask.shape == (6, 8)
    assert np.argwhere(mask.mask).tolist() == [[4, 3], [4, 4], [5, 3], [5, 4]]
    assert np.array_equal(done.result.masks[0], mask.mask)
    assert done.result.mask_logits[0, 0, 0] == OUTSIDE_LOGIT


def test_a_region_outside_of_the_image_is_refused_by_the_call():
    with pytest.raises(ImageError, match='is not within the image of 8 x 6'):
        stream_in_region(
            ScriptedBackend(), IMAGE, Query('found', region=(4, 0, 5, 1)), InferenceOptions(),
            threading.Event(),
        )  # fmt: skip


def test_a_script_can_fail_and_hang():
    backend = ScriptedBackend({'': {'hang': True}, 'fail': {'failure': 'broken'}})
    with pytest.raises(RuntimeError, match='broken'):
        answer(backend, Query('fail'))
    cancel = threading.Event()
    threading.Timer(0.05, cancel.set).start()
    assert answer(backend, Query('the mug'), cancel=cancel)[-1].result.status is Status.CANCELLED


def test_a_gated_script_loads_and_answers_when_its_files_exist(tmp_path):
    folder = tmp_path / 'model'
    backends = []
    thread = threading.Thread(
        target=lambda: backends.append(registry.load_backend(f'scripted:{folder}', LoadOptions()))
    )
    thread.start()
    thread.join(0.05)
    assert not backends
    folder.mkdir()
    thread.join(5)
    (backend,) = backends
    threading.Timer(0.05, (folder / 'answer').touch).start()
    assert not list(answer(backend, Query('uncancellable')))[-1].result.masks.size
