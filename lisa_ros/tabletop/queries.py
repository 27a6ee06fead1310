# SPDX-License-Identifier: Apache-2.0
"""A synthetic query about a scene: dialogue turns, answers and target masks.

Query categories:

    explicit    a name: "segment the mug"; for two mugs the answer shows both and asks which
    attributes  colour, size, material: "the red mug", "the metal thing"
    relations   spatial relations and comparisons: "the thing left of the milk", "the taller mug"
    several     more than one name: "the pan and the bowl", "all the toys"
    part        a named part: "the handle of the mug"
    use         a use that one category serves: "something to fry an egg in"
    knowledge   a fact of general knowledge: "what comes from a cow"
    two_step    one of these inside another: "the drink next to the thing that can be read"
    question    a question with a text answer: "what is on the table?", "how many mugs are there?"
    general_knowledge   text about the world, not the image: "Tell me what comes from a cow."
    dialogue    two to four turns: "and the bowl?", "the other one", "what is it for?"

Most categories also ask for absent objects. The answer then says so, without [SEG].

Answers are chains of short steps, because a model of few layers cannot skip them:

- An answer that needs reasoning names the object before [SEG]: "The pan fries food, [SEG]." So the
  mask follows from the reason. It does so for an absent object, too: "The pan fries food, but
  there is no pan here."
- Lists go from left to right.
- An answer that compares positions or sizes first states the measurements: "The milk 42 56, left
  of it 22 58. It is the red mug, [SEG]." Positions are hundredths of the image's width and height,
  sizes are cm. Numbers directly follow the name they describe; with "is at" in between the model
  had not learnt them after 800 steps.

The phrases of queries are in `templates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import ListedName
from lisa_ros.tabletop.scene_graph import SceneObject, instance_ids

CATEGORIES = (
    'explicit', 'attributes', 'relations', 'several', 'part', 'use', 'knowledge', 'two_step',
    'question', 'general_knowledge', 'dialogue',
)  # fmt: skip
IMPLICIT = ('use', 'knowledge', 'two_step')  # categories that need reasoning


@dataclass(frozen=True)
class TabletopQuery:
    """A dialogue of one to four turns about a scene, with its ground truth."""

    category: str  # one of CATEGORIES
    turns: tuple[Turn, ...]
    # instance ids of each mask, one entry per [SEG] of all turns
    targets: tuple[tuple[int, ...], ...]
    # instance ids of the measured object, one entry per size in cm of all answers
    measured_targets: tuple[tuple[int, ...], ...] = ()
    listed_names: tuple[ListedName, ...] = ()  # names in lists, in the order of the answers
    referents: tuple[SceneObject, ...] = ()  # objects that "it" means in the next turn
    # what the last answer must state (object and reason): alternatives of each phrase
    expected_phrases: tuple[tuple[str, ...], ...] = ()
    first_target: int = 0  # index of the last turn's first target
    forced_mask: bool = False  # teacher-forced text without token loss; the mask must be empty
    # the last answer with a wrong object name, which the model reads instead; '' for none
    corrupted_answer: str = ''

    @property
    def present(self) -> bool:
        """Return whether the last turn has a mask."""
        return len(self.targets) > self.first_target


def mask_query(
    category: str,
    query: str,
    objects: Sequence[SceneObject],
    answer: str,
    *,
    measured_targets: tuple[tuple[int, ...], ...] = (),
    listed_names: tuple[ListedName, ...] = (),
    expected_phrases: tuple[tuple[str, ...], ...] = (),
) -> TabletopQuery:
    """Return a query of one turn, answered with one mask of all objects."""
    return TabletopQuery(
        category,
        (Turn(query, answer),),
        (instance_ids(objects),),
        measured_targets=measured_targets,
        listed_names=listed_names,
        referents=tuple(objects),
        expected_phrases=expected_phrases,
    )


def text_query(category: str, query: str, answer: str) -> TabletopQuery:
    """Return a query of one turn, answered without a mask."""
    return TabletopQuery(category, (Turn(query, answer),), ())
