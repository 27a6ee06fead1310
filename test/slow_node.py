# SPDX-License-Identifier: Apache-2.0
"""lisa_node with a model that takes as long as a test wants; a program, not a test.

The weights load until the folder that the parameter `model` names exists. An answer lasts until
a file `answer` is in there, and the seconds that it holds, or it is cancelled; a command that
begins with "deaf" hears no cancel. One that begins with "found" has a mask of all, "bright" one of
what is.
"""

import time
from pathlib import Path

import numpy as np

from lisa_ros.results import Done, Segmentation, Status
from lisa_ros.ros import node


class SlowModel:
    device = 'cpu'

    def __init__(self, folder):
        self._go = folder / 'answer'
        while not folder.exists():
            time.sleep(0.01)

    def stream(self, picture, text, *, dialogue, cancel):
        print('thinking', flush=True)  # the test waits for it
        began = time.monotonic()
        while not self._is_over(began) and (text.startswith('deaf') or not cancel.is_set()):
            time.sleep(0.01)
        masks = np.ones((int(text.startswith('found')), *picture.shape[:2]), bool)
        if text.startswith('bright'):
            masks = picture[None, :, :, 0] > 200
        status = Status.CANCELLED if cancel.is_set() else Status(2 - len(masks))
        yield Done(
            Segmentation(
                query=text,
                answer='Sure.',
                answer_raw='Sure.',
                token_ids=(),
                masks=masks,
                mask_logits=masks * np.float32(5),
                scores=np.ones(len(masks), np.float32),
                status=status,
            )
        )

    def _is_over(self, began):
        if not self._go.exists():
            return False
        return time.monotonic() - began > float(self._go.read_text() or 0)


node._load = lambda settings: SlowModel(Path(settings.model))
node._PATIENCE = 0.5

if __name__ == '__main__':
    raise SystemExit(node.main())
