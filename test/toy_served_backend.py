# SPDX-License-Identifier: Apache-2.0
"""A backend without weights for the tests of `lisa-ros serve`: replicas of Ray load it in no time.

`toy:FOLDER` marks the bright pixels. FOLDER/config.json has its `delay` for each batch [s], and
`sign`, 1 or -1: whether it marks bright or dark pixels. The command "crash" ends the process, and
"held" waits while the file `hold_of(FOLDER)` exists. The answer names the process.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from lisa_ros.errors import CheckpointError
from lisa_ros.perception.backend import BatchRequest, Capabilities
from lisa_ros.results import Done, MaskReady, Segmentation, Status, Token

ENTRY_POINTS = '[lisa_ros.backends]\ntoy = toy_served_backend:load\n'


class ToyBackend:
    device, capabilities = 'cpu', Capabilities(batches=True)
    encode_images = clear_cache = lambda *_: None

    def __init__(self, config, hold):
        self._delay, self.sign, self._hold = config['delay'], config['sign'], hold

    def stream(self, image, query, options, cancel):
        *_, (_, done) = self.stream_batch([BatchRequest(image, query, cancel)], options)
        result = done.result
        yield Token('It is [SEG]')
        yield MaskReady(0, result.masks[0], result.mask_logits[0], 0.5)
        yield Token('.')
        yield Done(result)

    def stream_batch(self, requests, options):
        if any(request.query.text == 'crash' for request in requests):
            os._exit(1)
        end, is_held = time.monotonic() + self._delay, 'held' in requests[0].query.text
        while time.monotonic() < end or (is_held and self._hold.exists()):
            if all(item.cancel.is_set() for item in requests):
                break
            time.sleep(0.005)
        for number, request in enumerate(requests):
            yield number, Done(self._answer(request.image, request.query))

    def _answer(self, image, query):
        logits = self.sign * (image[None, :, :, 0].astype(np.float32) - 127.5)
        score = np.full(1, 0.5, np.float32)
        text = 'It is [SEG].'
        return Segmentation(
            query.text, f'{os.getpid()} found it.', text, logits > 0, logits, score, Status.FOUND
        )


def load(name, options):
    try:
        return ToyBackend(json.loads(Path(name, 'config.json').read_text()), hold_of(Path(name)))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f'{name}: no toy ({error})') from error


def hold_of(folder):
    """Return the file that holds answers; beside the folder, whose files are the version."""
    return folder.with_suffix('.hold')


def write_model(folder, delay=0.01, sign=1):
    (folder / 'config.json').write_text(json.dumps({'delay': delay, 'sign': sign}))


def write_entry_point(folder):
    """Make the scheme "toy:" known to processes that have `folder` in their PYTHONPATH."""
    info = folder / 'toy_served_backend-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: toy_served_backend\nVersion: 1\n')
    (info / 'entry_points.txt').write_text(ENTRY_POINTS)
