# SPDX-License-Identifier: Apache-2.0
"""The public Python API: an image and a query in, text and masks out.

Example:
    from lisa_ros.segmenter import Segmenter

    lisa = Segmenter.load('lisa-tabletop')
    result = lisa.segment(image, 'something to drink from')
    for event in lisa.stream(image, 'segment the red mug'): ...
"""

from lisa_ros.perception.segmenter import Segmenter

__all__ = ['Segmenter']
