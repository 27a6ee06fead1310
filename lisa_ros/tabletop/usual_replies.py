# SPDX-License-Identifier: Apache-2.0
"""What lisa-tabletop usually answers: replies.txt of its folder, see model/usual_replies.py.

python -m lisa_ros.tabletop.usual_replies > lisa_ros/weights/lisa-tabletop/replies.txt
"""

from __future__ import annotations

from lisa_ros.tabletop.objects import OBJECT_CATEGORIES
from lisa_ros.tabletop.reasoning_queries import reason_text


def usual_replies() -> list[str]:
    """Return replies of training without numbers and attributes, the most usual first."""
    categories = OBJECT_CATEGORIES.values()
    return [
        'Sure, [SEG].',
        'Sure, [SEG] and [SEG].',
        *(f'It is the {category.name}, [SEG].' for category in categories),
        *(f'{reason_text(category)}, [SEG].' for category in categories),
        *(f'There is no {category.name} here.' for category in categories),
        *(
            f'{reason_text(category)}, but there is no {category.name} here.'
            for category in categories
        ),
    ]


if __name__ == '__main__':
    print('\n'.join(usual_replies()))
