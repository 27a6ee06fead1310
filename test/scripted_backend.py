# SPDX-License-Identifier: Apache-2.0
"""A backend that answers from a script; importing this module registers "scripted:".

`scripted:FILE.json` maps the beginning of a query to a reply: `answer`, `masks` (all bright nan),
`names` of the masks, `delay` [s], `failure` (error text), `hang` (until a cancel),
`uncancellable`, `flip` (the result has the masks in another order), `run` and `then` (Python to
run before the answer and after the masks); "load" maps to Python to run while it loads. With
"batches" it answers batches.
`scripted:FOLDER` waits for FOLDER when it loads, and before each answer for the file
FOLDER/answer, which may contain a delay [s].
"""

import dataclasses
import json
from itertools import zip_longest
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from lisa_ros.perception import backend, registry
from lisa_ros.results import Done, MaskReady, Segmentation, Status, Token

REPLIES = {
    '': {},
    'uncancellable': {'uncancellable': 1},
    'found': {'masks': 'all'},
    'bright': {'masks': 'bright'},
}


CAPABILITIES = backend.Capabilities(explains=True, dialogue=True)


class ScriptedBackend:
    device, capabilities = 'cpu', CAPABILITIES
    encode_images = clear_cache = lambda *_: None

    def __init__(self, replies=REPLIES, gate=None):
        self._replies, self._gate, self.calls = replies, gate, []
        if 'batches' in replies:
            self.capabilities = dataclasses.replace(CAPABILITIES, batches=True)

    def stream(self, image, query, options, cancel):
        self.calls.append((query, options))
        reply = self._replies[max(filter(query.text.startswith, self._replies), key=len)]
        print('thinking', flush=True) if self._gate else None  # tests wait for this line
        start, keep_on = monotonic(), 'uncancellable' in reply
        while monotonic() - start < self._delay(reply) and (keep_on or not cancel.is_set()):
            sleep(0.01)
        if 'failure' in reply:
            raise RuntimeError(reply['failure'])
        exec(reply.get('run', ''), {})  # noqa: S102
        yield Token(text := reply.get('answer', 'Sure.'))
        sign = {'all': 1, 'bright': np.where(image[..., 0] > 200, 1, -1), 'nan': np.nan}
        kinds, size = reply.get('masks', '').split(), image.shape[:2]
        names = tuple(reply.get('names', '').split())
        logits = [np.full(size, 5 * sign[kind]) for kind in kinds]
        logits = np.reshape(logits, (-1, *size)).astype(np.float32)
        for i, (mask, name) in enumerate(zip_longest(logits, names, fillvalue='')):
            yield MaskReady(i, mask > 0, mask, 1.0, name)
        exec(reply.get('then', ''), {})  # noqa: S102
        logits = logits[::-1] if 'flip' in reply else logits
        status = Status.CANCELLED if cancel.is_set() else Status(2 - bool(kinds))
        arrays = logits > 0, logits, np.ones(len(kinds))
        yield Done(Segmentation(query.text, text, text, *arrays, status, names=names))

    def stream_batch(self, requests, options):
        streams = {
            number: self.stream(request.image, request.query, options, request.cancel)
            for number, request in enumerate(requests)
        }
        while streams:
            for number, stream in list(streams.items()):
                event = next(stream)
                if isinstance(event, Done):
                    del streams[number]
                yield number, event

    def _delay(self, reply):
        if self._gate:  # a file with the seconds
            return float(self._gate.read_text() or 0) if self._gate.exists() else np.inf
        return np.inf if 'hang' in reply else reply.get('delay', 0)


def load(rest, options):
    while not (path := Path(rest)).exists():
        sleep(0.01)
    if path.is_dir():
        return ScriptedBackend(REPLIES, path / 'answer')
    replies = json.loads(path.read_text())
    exec(replies.pop('load', ''), {})  # noqa: S102
    return ScriptedBackend(replies)


registry.register_backend('scripted', load)
