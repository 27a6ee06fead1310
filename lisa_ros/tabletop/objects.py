# SPDX-License-Identifier: Apache-2.0
"""Catalogue of tabletop objects: meshes, real sizes, appearance, and general knowledge.

An `ObjectCategory` is a noun, such as "mug". An `ObjectModel` is one 3D model of that category, in
one or more colours and sizes. A category can have a supercategory, as in COCO, such as "dish".

Meshes come from an assets folder (`meshes/<folder>/*.obj`, LIBERO and YCB objects) and from two
Python packages (`robosuite:` and `pybullet_data:`). Their units and axes differ. Therefore the
catalogue gives the real size and the upright axis of each model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Colour name -> linear RGB multiplier of a light texture.
COLOURS = {
    'red': (0.80, 0.08, 0.07),
    'green': (0.12, 0.50, 0.16),
    'blue': (0.10, 0.22, 0.72),
    'yellow': (0.92, 0.76, 0.10),
    'white': (0.93, 0.93, 0.92),
}
SIZES = {'small': 0.78, 'big': 1.12}  # size name -> multiple of `ObjectModel.size`
# In id images, the pixels of an object's named part (a handle, a cork) have this added to its id.
PART_FLAG = 0x80


@dataclass(frozen=True)
class ObjectCategory:
    """A noun, and what people know about the objects that it names."""

    name: str
    purpose: str  # completes "The <name> ..."
    uses: tuple[str, ...]  # phrases that describe what only this category is used for
    facts: tuple[str, ...]  # phrases of general knowledge that are true only of this category
    supercategory: str | None = None  # dish, drink, food or toy; None for some

    @property
    def needs(self) -> tuple[str, ...]:
        """Return all phrases that refer to this category without naming it."""
        return self.uses + self.facts


@dataclass(frozen=True)
class MeshPart:
    """One mesh of an object."""

    mesh: str  # .obj file under meshes/ of the assets folder, or `package:path`
    # texture file under meshes/ (or `package:path`), or linear RGB
    appearance: str | tuple[float, float, float]
    name: str | None = None  # "handle", "cork"; None: the body


@dataclass(frozen=True)
class ObjectModel:
    """A 3D model: mesh files, real size, upright pose, and the colours and sizes it comes in."""

    name: str
    category: str
    parts: tuple[MeshPart, ...]
    size: float  # longest edge of its bounding box [m]
    up_axis: str = 'z'  # mesh axis that points up when the object is upright
    colours: tuple[str, ...] = ()  # names in COLOURS; empty: the texture's own
    sizes: tuple[str, ...] = ()  # names in SIZES; empty: one size only
    has_handle: bool = False  # what sticks out of the round body becomes a part "handle"
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor per mesh axis, before `size`
    can_lie: bool = False  # may also lie on its side
    material: str | None = None
    colour: str | None = None  # colour name of the texture, if one colour dominates
    # colours of parts of the texture; with such an object in view, "the red object" is ambiguous
    partial_colours: tuple[str, ...] = ()
    held_out: bool = False  # only in scenes of the split "unseen"


_ALL_COLOURS = tuple(COLOURS)
_BOTH_SIZES = tuple(SIZES)

OBJECT_CATEGORIES = {
    category.name: category
    for category in (
        ObjectCategory('mug', 'holds a hot drink',
             ('something to drink from', 'something for my tea', 'what can I drink tea from'),
             ('what do people hold at breakfast', 'what keeps my coffee from running away', 'the thing a tea bag hangs in'), 'dish'),
        ObjectCategory('bowl', 'holds cereal or soup',
             ('something to eat soup from', 'something to mix a salad in', 'what can hold my soup'),
             ('what do I eat cereal from', 'the deep round dish', 'what does a cook whisk eggs in'), 'dish'),
        ObjectCategory('plate', 'holds a meal',
             ('something to serve dinner on', 'something to put a steak on', 'what can I put my meal on'),
             ('the flat round dish', 'what goes under my dinner', 'what does a waiter bring'), 'dish'),
        ObjectCategory('ramekin', 'holds a small dessert',
             ('something to bake a souffle in', 'something small for a dip', 'what can hold a dip'),
             ('what does a creme brulee come in', 'the small dish for the oven', 'the smallest of the dishes in a kitchen'), 'dish'),
        ObjectCategory('pan', 'fries food',
             ('something to fry an egg in', 'something to cook pancakes in', 'what can I fry bacon in'),
             ('what goes on the stove', 'what gets hot over a flame', 'what does a cook hold by a long handle')),
        ObjectCategory('coffee pot', 'makes coffee',
             ('something to make coffee with', 'something to brew an espresso', 'what can make coffee'),
             ('what do Italians wake up with', 'what makes beans and water into a drink', 'the thing a barista has at home')),
        ObjectCategory('book', 'can be read',
             ('something to read', 'something to learn from', 'what can I read in bed'),
             ('what tells a story', 'what does a writer make', 'the thing a library is full of')),
        ObjectCategory('scissors', 'can cut paper',
             ('something to cut paper with', 'something to open a bag', 'what can cut a thread'),
             ('what is sharp', 'the thing children must not run with', 'what has two blades')),
        ObjectCategory('sponge', 'soaks up a spill',
             ('something to clean this spill', 'something to wash the dishes with', 'what can I wipe the table with'),
             ('what soaks up water', 'the soft thing beside a sink', 'what gets wet when I clean')),
        ObjectCategory('candle', 'gives light',
             ('something to light a dark room', 'something for a birthday cake', 'what can I burn for light'),
             ('what is made of wax', 'what did people read by long ago', 'the thing that needs a match')),
        ObjectCategory('tray', 'carries many things',
             ('something to carry the dishes on', 'something to bring breakfast to bed', 'what can I carry the cups with'),
             ('what does a waiter carry', 'the board with two grips', 'what goes from kitchen to table and back')),
        ObjectCategory('storage box', 'keeps things together',
             ('something to put my things away', 'something to store toys in', 'what can I pack this into'),
             ('what helps to tidy a shelf', 'the open box without food', 'what do people fill when they move')),
        ObjectCategory('desk caddy', 'keeps a desk tidy',
             ('something to keep pencils in', 'something to tidy my desk', 'what can hold pencils'),
             ('what stands in an office', 'where would a clerk look for a pen', 'the thing with room for letters')),
        ObjectCategory('milk', 'goes with cereal',
             ('something to pour on cereal', 'something to make my coffee white', 'what do I pour on cereal'),
             ('what comes from a cow', 'what makes bones strong', 'what is butter made from'), 'drink'),
        ObjectCategory('orange juice', 'is full of vitamins',
             ('something with vitamins to drink', 'some juice for breakfast', 'what drink has vitamins'),
             ('what is made of oranges', 'the drink that fruit is pressed for', 'what do sunny countries send in cartons'), 'drink'),
        ObjectCategory('soda can', 'holds a fizzy drink',
             ('something fizzy', 'something to drink with a burger', 'what can I drink at the movies'),
             ('what is full of bubbles', 'the drink that is bad for teeth', 'what hisses when it is opened'), 'drink'),
        ObjectCategory('water bottle', 'holds water',
             ('something to drink after a run', 'some water', 'what can I take on a hike'),
             ('what has no sugar at all', 'what do plants want, too', 'the drink without a taste'), 'drink'),
        ObjectCategory('wine bottle', 'holds wine',
             ('something for a party of adults', 'something to drink with a steak', 'what can I toast with'),
             ('what is made of grapes', 'what has a cork', 'the drink that children must not have'), 'drink'),
        ObjectCategory('banana', 'is a fruit to peel',
             ('something to peel and eat', 'some fruit for a runner', 'what can I slice on my oats'),
             ('what would a monkey eat', 'the long fruit', 'what grows in bunches'), 'food'),
        ObjectCategory('lemon', 'is a sour fruit',
             ('something to squeeze on fish', 'something sour for my tea', 'what can I make lemonade from'),
             ('what is very sour', 'the small round fruit', 'what did sailors eat against scurvy'), 'food'),
        ObjectCategory('bread', 'makes a sandwich',
             ('something to make a sandwich', 'something to put in the toaster', 'what can I make toast from'),
             ('what does a baker make', 'what is made of flour', 'the thing that crumbs come from'), 'food'),
        ObjectCategory('donut', 'is a sweet ring',
             ('something sweet with a hole', 'something to eat with coffee', 'what can a police officer snack on'),
             ('what is fried and round', 'what has a hole in it', 'the sweet ring'), 'food'),
        ObjectCategory('cereal', 'is a breakfast',
             ('something to eat with milk', 'something for breakfast', 'what do I put milk on'),
             ('what crunches in the morning', 'the box that is on a breakfast table', 'what is made of corn flakes'), 'food'),
        ObjectCategory('ketchup', 'goes on fries',
             ('something to put on fries', 'something red for a hot dog', 'what goes on a hot dog'),
             ('what is made of tomatoes', 'what do children put on everything', 'the red sauce'), 'food'),
        ObjectCategory('barbecue sauce', 'goes on ribs',
             ('something to put on ribs', 'something for a grill party', 'what do I need for a grill party'),
             ('what tastes of smoke', 'the brown sauce', 'what is ribs best friend'), 'food'),
        ObjectCategory('salad dressing', 'goes on a salad',
             ('something to put on lettuce', 'something for my salad', 'what goes on lettuce'),
             ('what makes greens tasty', 'what is made of oil and herbs', 'the white sauce'), 'food'),
        ObjectCategory('soup can', 'is a warm meal',
             ('something to warm up when I am cold', 'something for a can opener', 'what do I open with a can opener'),
             ('what meal is in a can', 'what lasts for years on a shelf', 'what has letters to eat'), 'food'),
        ObjectCategory('butter', 'goes on toast',
             ('something to spread on toast', 'something to grease a pan', 'what goes on toast'),
             ('what melts in a hot pan', 'what is churned from cream', 'the yellow fat'), 'food'),
        ObjectCategory('cream cheese', 'goes on a bagel',
             ('something to put on a bagel', 'something for a cheesecake', 'what goes on a bagel'),
             ('what do I need for a cheesecake', 'the soft cheese', 'what is named after a city of brothers'), 'food'),
        ObjectCategory('popcorn', 'is a snack for a film',
             ('a snack for a film', 'something to heat in the microwave', 'what do I eat at the movies'),
             ('what pops when it is hot', 'what jumps in the microwave', 'the snack that is made of corn'), 'food'),
        ObjectCategory('macaroni', 'is a pasta dinner',
             ('something to boil for dinner', 'some pasta', 'what do I boil for dinner'),
             ('what is made of pasta', 'what comes with cheese sauce', 'the noodles that are short'), 'food'),
        ObjectCategory('pudding', 'is a dessert',
             ('something sweet for dessert', 'something with chocolate', 'what is for dessert'),
             ('what tastes of chocolate', 'what is made of cocoa', 'what comes after the main dish'), 'food'),
        ObjectCategory('rubber duck', 'swims in the bath',
             ('something for the bath', 'something that can float', 'what can I play with in the bath'),
             ('what looks like a bird', 'what would say quack', 'the toy that is never thirsty'), 'toy'),
        ObjectCategory('ball', 'can be thrown',
             ('something to throw', 'something to kick', 'what can I play soccer with'),
             ('what rolls away', 'what does a goalkeeper catch', 'the toy of a dog'), 'toy'),
        ObjectCategory('toy brick', 'builds a toy house',
             ('something to build a tower', 'something to build a toy house', 'what can I build with'),
             ('what hurts under a bare foot', 'what clicks onto another one', 'the toy from Denmark'), 'toy'),
        ObjectCategory('toy rabbit', 'is a toy to cuddle',
             ('something to cuddle', 'something for a child to sleep with', 'what can a baby hug'),
             ('what has long ears', 'what looks like an animal that eats carrots', 'the toy for Easter'), 'toy'),
    )
}  # fmt: skip

# Phrase -> other categories that it also fits. No query uses the phrase in a scene with one of them.
ALTERNATIVES = {
    'something to drink from': ('water bottle', 'soda can', 'wine bottle', 'bowl'),
    'what keeps my coffee from running away': ('coffee pot',),
    'what do people hold at breakfast': ('milk', 'cereal', 'orange juice', 'bowl'),
    'something to eat soup from': ('mug', 'ramekin'),
    'what can hold my soup': ('mug', 'ramekin', 'soup can'),
    'what do I eat cereal from': ('mug', 'ramekin'),
    'what does a cook whisk eggs in': ('mug',),
    'something to mix a salad in': ('storage box',),
    'what does a waiter bring': ('tray', 'wine bottle', 'bowl', 'mug'),
    'what does a waiter carry': ('plate', 'wine bottle', 'bowl', 'mug'),
    'what can I put my meal on': ('tray',),
    'something to serve dinner on': ('tray',),
    'something to bake a souffle in': ('bowl', 'mug'),
    'something small for a dip': ('bowl', 'mug'),
    'what can hold a dip': ('bowl', 'mug'),
    'what goes on the stove': ('coffee pot',),
    'what gets hot over a flame': ('coffee pot',),
    'something for the bath': ('sponge',),
    'something that can float': ('ball', 'sponge', 'storage box', 'water bottle', 'candle'),
    'what can I play with in the bath': ('ball', 'sponge'),
    'what can a baby hug': ('ball', 'rubber duck'),
    'what rolls away': ('soda can', 'soup can', 'lemon', 'candle', 'water bottle'),
    'something to put my things away': ('desk caddy', 'tray'),
    'something to store toys in': ('tray', 'bowl'),
    'what can I pack this into': ('tray', 'desk caddy'),
    'what helps to tidy a shelf': ('desk caddy',),
    'something to tidy my desk': ('storage box',),
    'what can hold pencils': ('mug', 'storage box'),
    'something to keep pencils in': ('mug', 'storage box'),
    'where would a clerk look for a pen': ('mug',),
    'something to carry the dishes on': ('storage box',),
    'what can I carry the cups with': ('storage box',),
    'what goes from kitchen to table and back': ('plate', 'bowl', 'mug', 'pan'),
    'some juice for breakfast': ('lemon',),
    'something to drink with a burger': ('water bottle', 'milk', 'orange juice'),
    'what can I drink at the movies': ('water bottle', 'orange juice'),
    'what is full of bubbles': ('sponge',),
    'something to drink after a run': ('orange juice', 'milk', 'soda can'),
    'what can I take on a hike': ('banana', 'bread', 'soda can', 'orange juice'),
    'something to drink with a steak': ('water bottle', 'soda can'),
    'what can I toast with': ('water bottle', 'soda can', 'orange juice'),
    'some fruit for a runner': ('lemon', 'orange juice'),
    'what can I slice on my oats': ('lemon',),
    'something to make a sandwich': ('butter', 'cream cheese'),
    'what is made of flour': ('donut', 'macaroni', 'cereal'),
    'something to eat with coffee': ('bread', 'pudding', 'banana'),
    'what can a police officer snack on': ('popcorn', 'banana', 'pudding'),
    'what has a hole in it': ('storage box', 'mug', 'toy brick', 'scissors'),
    'something to eat with milk': ('donut', 'pudding'),
    'something for breakfast': ('bread', 'butter', 'banana', 'orange juice', 'milk', 'donut'),
    'what crunches in the morning': ('bread',),
    'the box that is on a breakfast table': ('butter', 'cream cheese', 'milk', 'orange juice'),
    'something to put on fries': ('barbecue sauce', 'salad dressing'),
    'what do children put on everything': ('barbecue sauce',),
    'the red sauce': ('barbecue sauce',),
    'something for a grill party': ('ketchup', 'salad dressing', 'bread'),
    'what do I need for a grill party': ('ketchup', 'salad dressing', 'bread'),
    'something to warm up when I am cold': ('mug', 'coffee pot', 'candle'),
    'what lasts for years on a shelf': ('book', 'macaroni', 'wine bottle'),
    'what goes on toast': ('cream cheese',),
    'something to spread on toast': ('cream cheese',),
    'what melts in a hot pan': ('cream cheese',),
    'what goes on a bagel': ('butter',),
    'something to put on a bagel': ('butter',),
    'a snack for a film': ('soda can', 'donut', 'banana'),
    'what do I eat at the movies': ('donut', 'banana'),
    'something to heat in the microwave': ('soup can', 'macaroni', 'milk'),
    'something to boil for dinner': ('soup can',),
    'what do I boil for dinner': ('soup can',),
    'something sweet for dessert': ('donut', 'banana'),
    'what is for dessert': ('donut', 'banana'),
    'what comes after the main dish': ('donut', 'coffee pot', 'banana'),
    'what makes bones strong': ('cream cheese', 'butter'),
    'what is churned from cream': ('cream cheese',),
    'what stands in an office': ('book', 'scissors', 'mug', 'storage box'),
    'what makes greens tasty': ('lemon',),
    'something for my salad': ('lemon',),
}


def _single_mesh(
    name: str, category: str, mesh: str, appearance: str | tuple, size: float, **options: Any
) -> ObjectModel:
    """Return a model of one mesh; `options` are further fields of ObjectModel."""
    return ObjectModel(name, category, (MeshPart(mesh, appearance),), size, **options)


_OFF_WHITE = (0.95, 0.95, 0.95)
_ROBOSUITE = 'robosuite:models/assets/'
_BULLET = 'pybullet_data:'

OBJECTS = {
    model.name: model
    for model in (
        _single_mesh('porcelain_mug', 'mug', 'porcelain_mug/porcelain_mug.obj', _OFF_WHITE, 0.13, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, has_handle=True, material='ceramic'),
        _single_mesh('coffee_mug', 'mug', 'red_coffee_mug/red_coffee_mug.obj', _OFF_WHITE, 0.14, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, has_handle=True, material='ceramic'),
        _single_mesh('round_mug', 'mug', f'{_BULLET}objects/mug.obj', _OFF_WHITE, 0.12, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, has_handle=True, material='ceramic'),
        _single_mesh('tall_mug', 'mug', 'white_yellow_mug/white_yellow_mug.obj', _OFF_WHITE, 0.13, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, has_handle=True, material='ceramic', held_out=True),
        _single_mesh('bowl', 'bowl', 'red_bowl/model.obj', _OFF_WHITE, 0.17, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, material='ceramic'),
        _single_mesh('plate', 'plate', 'plate/model.obj', _OFF_WHITE, 0.21, colours=_ALL_COLOURS, sizes=_BOTH_SIZES, material='ceramic'),
        _single_mesh('ramekin', 'ramekin', 'glazed_rim_porcelain_ramekin/glazed_rim_porcelain_ramekin.obj', 'glazed_rim_porcelain_ramekin/texture.png', 0.10, material='ceramic', partial_colours=('white',)),
        _single_mesh('frypan', 'pan', 'chefmate_8_frypan/chefmate_8_frypan.obj', 'chefmate_8_frypan/texture.png', 0.32, has_handle=True, material='metal'),
        ObjectModel('moka_pot', 'coffee pot', (
            MeshPart('moka_pot/moka_pot_body.obj', 'moka_pot/metal_diff.png'),
            MeshPart('moka_pot/moka_pot_handle.obj', 'moka_pot/rubber_black.png', 'handle'),
        ), 0.19, material='metal'),
        _single_mesh('yellow_book', 'book', 'yellow_book/yellow_book.obj', 'yellow_book/yellow_book.png', 0.23, can_lie=True, partial_colours=('yellow', 'white')),
        _single_mesh('black_book', 'book', 'black_book/black_book.obj', 'black_book/black_book_texture.png', 0.24, can_lie=True, partial_colours=('white',)),
        _single_mesh('scissors', 'scissors', 'ycb_scissors/textured_simple_reoriented.obj', 'ycb_scissors/texture_map.png', 0.20, partial_colours=('red',), material='metal'),
        _single_mesh('sponge', 'sponge', f'{_BULLET}jenga/jenga.obj', _OFF_WHITE, 0.12, colours=('green', 'blue', 'yellow'), stretch=(1.0, 0.65, 0.3)),
        _single_mesh('candle', 'candle', f'{_ROBOSUITE}objects/meshes/cylinder.obj', _OFF_WHITE, 0.15, colours=('red', 'white', 'blue'), sizes=_BOTH_SIZES, stretch=(0.24, 0.24, 1.0)),
        _single_mesh('tray', 'tray', 'wooden_tray/wooden_tray.obj', (0.42, 0.25, 0.12), 0.30, material='wood'),
        _single_mesh('storage_box', 'storage box', 'white_storage_box/white_storage_box.obj', _OFF_WHITE, 0.17, colours=_ALL_COLOURS, sizes=_BOTH_SIZES),
        _single_mesh('desk_caddy', 'desk caddy', 'desk_caddy/desk_caddy.obj', (0.45, 0.30, 0.18), 0.22, material='wood'),
        _single_mesh('milk', 'milk', 'milk/textured.obj', 'milk/texture_map.png', 0.19, up_axis='y', can_lie=True, partial_colours=('red', 'white'), material='cardboard'),
        _single_mesh('white_milk', 'milk', f'{_ROBOSUITE}objects/meshes/milk.obj', f'{_ROBOSUITE}textures/ceramic.png', 0.18, partial_colours=('white',), material='cardboard', held_out=True),
        _single_mesh('orange_juice', 'orange juice', 'orange_juice/textured.obj', 'orange_juice/texture_map.png', 0.19, up_axis='y', can_lie=True, partial_colours=('yellow', 'green', 'red'), material='cardboard'),
        _single_mesh('soda_can', 'soda can', f'{_ROBOSUITE}objects/meshes/can.obj', f'{_ROBOSUITE}textures/soda.png', 0.12, can_lie=True, partial_colours=('red', 'white'), material='metal'),
        _single_mesh('water_bottle', 'water bottle', f'{_ROBOSUITE}objects/meshes/bottle.obj', (0.45, 0.62, 0.72), 0.21, can_lie=True, partial_colours=('blue',)),
        ObjectModel('wine_bottle', 'wine bottle', (
            MeshPart('wine_bottle/wine_bottle_red_main.obj', (0.03, 0.07, 0.03)),
            MeshPart('wine_bottle/wine_bottle_red_logo.obj', 'wine_bottle/label_wine.png'),
            MeshPart('wine_bottle/wine_bottle_red_cork.obj', 'wine_bottle/cork_texture.png', 'cork'),
        ), 0.27, can_lie=True, partial_colours=('green',), material='glass'),
        _single_mesh('banana', 'banana', 'ycb_banana/textured_simple_reoriented.obj', 'ycb_banana/texture_map.png', 0.19, colour='yellow'),
        _single_mesh('lemon', 'lemon', f'{_ROBOSUITE}objects/meshes/lemon.obj', f'{_ROBOSUITE}textures/lemon.png', 0.09, stretch=(1.35, 1.0, 1.0), colour='yellow'),
        _single_mesh('bread', 'bread', f'{_ROBOSUITE}objects/meshes/bread.obj', f'{_ROBOSUITE}textures/bread.png', 0.15, stretch=(1.5, 1.0, 1.0)),
        _single_mesh('donut', 'donut', f'{_BULLET}torus/torus_textured.obj', (0.55, 0.28, 0.12), 0.12, up_axis='y'),
        _single_mesh('cereal', 'cereal', f'{_ROBOSUITE}objects/meshes/cereal.obj', f'{_ROBOSUITE}textures/cereal.png', 0.21, can_lie=True, partial_colours=('red', 'yellow', 'green'), material='cardboard'),
        _single_mesh('ketchup', 'ketchup', 'ketchup/textured.obj', 'ketchup/texture_map.png', 0.16, up_axis='y', can_lie=True, partial_colours=('red', 'white')),
        _single_mesh('bbq_sauce', 'barbecue sauce', 'bbq_sauce/bbq_sauce.obj', 'bbq_sauce/texture_map.png', 0.16, can_lie=True),
        _single_mesh('salad_dressing', 'salad dressing', 'salad_dressing/textured.obj', 'salad_dressing/texture_map.png', 0.16, up_axis='y', can_lie=True, partial_colours=('white', 'green')),
        _single_mesh('new_salad_dressing', 'salad dressing', 'new_salad_dressing/textured.obj', 'new_salad_dressing/texture_map.png', 0.16, up_axis='y', can_lie=True, partial_colours=('white', 'green'), held_out=True),
        _single_mesh('alphabet_soup', 'soup can', 'alphabet_soup/textured.obj', 'alphabet_soup/texture_map.png', 0.10, up_axis='y', can_lie=True, partial_colours=('red', 'blue', 'yellow'), material='metal'),
        _single_mesh('butter', 'butter', 'butter/butter.obj', 'butter/texture_map.png', 0.12, partial_colours=('yellow', 'red', 'blue', 'white'), material='cardboard'),
        _single_mesh('cream_cheese', 'cream cheese', 'cream_cheese/cream_cheese.obj', 'cream_cheese/texture_map.png', 0.12, partial_colours=('blue', 'white', 'green'), material='cardboard'),
        _single_mesh('popcorn', 'popcorn', 'popcorn/popcorn.obj', 'popcorn/texture_map.png', 0.15, can_lie=True, partial_colours=('blue', 'yellow', 'red'), material='cardboard'),
        _single_mesh('macaroni', 'macaroni', 'macaroni_and_cheese/textured.obj', 'macaroni_and_cheese/texture_map.png', 0.17, up_axis='y', can_lie=True, partial_colours=('blue', 'yellow'), material='cardboard'),
        _single_mesh('chocolate_pudding', 'pudding', 'chocolate_pudding/textured.obj', 'chocolate_pudding/texture_map.png', 0.11, partial_colours=('white', 'blue', 'red'), material='cardboard'),
        _single_mesh('rubber_duck', 'rubber duck', f'{_BULLET}duck.obj', f'{_BULLET}duckCM.png', 0.13, up_axis='y', colour='yellow'),
        _single_mesh('ball', 'ball', f'{_BULLET}soccerball.obj', _OFF_WHITE, 0.12, colours=_ALL_COLOURS, sizes=_BOTH_SIZES),
        _single_mesh('toy_brick', 'toy brick', f'{_BULLET}lego/lego.obj', _OFF_WHITE, 0.11, up_axis='y', colours=_ALL_COLOURS, sizes=_BOTH_SIZES),
        _single_mesh('toy_rabbit', 'toy rabbit', f'{_BULLET}bunny.obj', (0.55, 0.42, 0.33), 0.14, up_axis='z'),
    )
}  # fmt: skip
HELD_OUT_TABLE_TEXTURES = ('kona_gotham', 'rustic_floor')  # only in the split "unseen"
