# SPDX-License-Identifier: Apache-2.0
"""The things on our tables: their meshes, real sizes and looks, and what a person knows of them.

Meshes come from an assets folder (`meshes/<folder>/*.obj`, LIBERO and YCB objects) in many units
and axes; the table below gives each one its real size and its upright pose. A `Kind` is what words
name ("mug"), a `Thing` one mesh of that kind, a look one colour of a thing that can be coloured.
"""

from __future__ import annotations

from dataclasses import dataclass

# Colours that words name, as linear RGB multipliers of a light texture.
COLOURS = {
    'red': (0.80, 0.08, 0.07),
    'green': (0.12, 0.50, 0.16),
    'blue': (0.10, 0.22, 0.72),
    'yellow': (0.92, 0.76, 0.10),
    'white': (0.93, 0.93, 0.92),
}


@dataclass(frozen=True)
class Kind:
    """What one word names, and what a person would ask it for."""

    name: str
    does: str  # completes "The <name> ..."
    needs: tuple[str, ...]  # implicit requests that only this kind answers


@dataclass(frozen=True)
class Thing:
    """One mesh: where its files are, how big it is, how it stands, which colours it may have."""

    name: str
    kind: str
    parts: tuple[tuple[str, str | tuple[float, float, float]], ...]  # (obj, texture or linear RGB)
    size: float  # longest edge of its bounding box [m]
    up: str = 'z'  # mesh axis that points up when it stands
    colours: tuple[str, ...] = ()  # names in COLOURS; empty: it looks as its texture does
    lies: bool = False  # may also lie on its side
    held_out: bool = False  # never in training or validation scenes


_ALL = tuple(COLOURS)

KINDS = {
    kind.name: kind
    for kind in (
        Kind('mug', 'holds a drink', (
            'something to drink from', 'something for my tea', 'what can I drink tea from', 'what holds a hot drink')),
        Kind('bowl', 'holds cereal or soup', (
            'something to eat cereal from', 'something for my soup', 'what can hold my soup', 'what do I eat cereal from')),
        Kind('plate', 'holds a meal', (
            'something to serve dinner on', 'something flat to eat from', 'what can I put a steak on', 'what goes under my dinner')),
        Kind('pan', 'fries food', (
            'something to fry an egg in', 'something to cook pancakes in', 'what can I cook pancakes with', 'what goes on the stove')),
        Kind('coffee pot', 'makes coffee', (
            'something to make coffee with', 'something to brew an espresso', 'what brews an espresso', 'what can make coffee')),
        Kind('book', 'can be read', (
            'something to read', 'something with a story', 'what tells a story', 'what can I read')),
        Kind('banana', 'is a fruit', (
            'some fruit', 'something a monkey would eat', 'what would a monkey eat', 'what grows on a tree')),
        Kind('scissors', 'can cut paper', (
            'something to cut paper with', 'something sharp', 'what can open a bag', 'what can cut paper')),
        Kind('milk', 'goes with cereal', (
            'something to pour on cereal', 'something that a cow gives', 'what comes from a cow', 'what do I pour on cereal')),
        Kind('orange juice', 'is full of vitamins', (
            'something with vitamins to drink', 'a drink from oranges', 'what is made of oranges', 'what drink has vitamins')),
        Kind('ketchup', 'goes on fries', (
            'something to put on fries', 'something made of tomatoes', 'what is made of tomatoes', 'what goes on fries')),
        Kind('soup can', 'is a warm meal', (
            'something to warm up when I am cold', 'something for a can opener', 'what do I open with a can opener', 'what meal is in a can')),
        Kind('butter', 'goes on toast', (
            'something to spread on toast', 'something that melts in a hot pan', 'what melts in a hot pan', 'what goes on toast')),
        Kind('cream cheese', 'goes on a bagel', (
            'something to put on a bagel', 'something for a cheesecake', 'what do I need for a cheesecake', 'what goes on a bagel')),
        Kind('popcorn', 'is a snack for a film', (
            'a snack for a film', 'something to eat at the movies', 'what pops when it is hot', 'what do I eat at the movies')),
        Kind('macaroni', 'is a pasta dinner', (
            'something to boil for dinner', 'some pasta', 'what is made of pasta', 'what do I boil for dinner')),
        Kind('wine bottle', 'holds wine', (
            'something for a party of adults', 'something made of grapes', 'what is made of grapes', 'what has a cork')),
        Kind('ramekin', 'holds a small dessert', (
            'something to bake a souffle in', 'something small for a dip', 'what can hold a dip', 'what can I bake a souffle in')),
        Kind('salad dressing', 'goes on a salad', (
            'something to put on lettuce', 'something for my salad', 'what makes a salad tasty', 'what goes on lettuce')),
        Kind('pudding', 'is a dessert', (
            'something sweet for dessert', 'something with chocolate', 'what tastes of chocolate', 'what is for dessert')),
        Kind('barbecue sauce', 'goes on ribs', (
            'something to put on ribs', 'something for a grill party', 'what do I need for a grill party', 'what goes on ribs')),
        Kind('desk caddy', 'keeps a desk tidy', (
            'something to keep pencils in', 'something to tidy my desk', 'what makes a desk tidy', 'what can hold pencils')),
    )
}  # fmt: skip


def _one(name: str, kind: str, mesh: str, look, size: float, **more) -> Thing:
    return Thing(name, kind, ((mesh, look),), size, **more)


_PLAIN = (0.95, 0.95, 0.95)

THINGS = {
    thing.name: thing
    for thing in (
        _one('porcelain_mug', 'mug', 'porcelain_mug/porcelain_mug.obj', _PLAIN, 0.13, colours=_ALL),
        _one('coffee_mug', 'mug', 'red_coffee_mug/red_coffee_mug.obj', _PLAIN, 0.13, colours=_ALL),
        _one('tall_mug', 'mug', 'white_yellow_mug/white_yellow_mug.obj', _PLAIN, 0.13, colours=_ALL, held_out=True),
        _one('bowl', 'bowl', 'red_bowl/model.obj', _PLAIN, 0.17, colours=_ALL),
        _one('plate', 'plate', 'plate/model.obj', _PLAIN, 0.22, colours=_ALL),
        _one('frypan', 'pan', 'chefmate_8_frypan/chefmate_8_frypan.obj', 'chefmate_8_frypan/texture.png', 0.32),
        Thing('moka_pot', 'coffee pot', (
            ('moka_pot/moka_pot_body.obj', 'moka_pot/metal_diff.png'),
            ('moka_pot/moka_pot_handle.obj', 'moka_pot/rubber_black.png'),
        ), 0.19),
        _one('yellow_book', 'book', 'yellow_book/yellow_book.obj', 'yellow_book/yellow_book.png', 0.23, lies=True),
        _one('black_book', 'book', 'black_book/black_book.obj', 'black_book/black_book_texture.png', 0.24, lies=True),
        _one('banana', 'banana', 'ycb_banana/textured_simple_reoriented.obj', 'ycb_banana/texture_map.png', 0.19),
        _one('scissors', 'scissors', 'ycb_scissors/textured_simple_reoriented.obj', 'ycb_scissors/texture_map.png', 0.20),
        _one('milk', 'milk', 'milk/textured.obj', 'milk/texture_map.png', 0.19, up='y', lies=True),
        _one('orange_juice', 'orange juice', 'orange_juice/textured.obj', 'orange_juice/texture_map.png', 0.19, up='y', lies=True),
        _one('ketchup', 'ketchup', 'ketchup/textured.obj', 'ketchup/texture_map.png', 0.16, up='y', lies=True),
        _one('alphabet_soup', 'soup can', 'alphabet_soup/textured.obj', 'alphabet_soup/texture_map.png', 0.10, up='y', lies=True),
        _one('butter', 'butter', 'butter/butter.obj', 'butter/texture_map.png', 0.12),
        _one('cream_cheese', 'cream cheese', 'cream_cheese/cream_cheese.obj', 'cream_cheese/texture_map.png', 0.12),
        _one('popcorn', 'popcorn', 'popcorn/popcorn.obj', 'popcorn/texture_map.png', 0.15, lies=True),
        _one('macaroni', 'macaroni', 'macaroni_and_cheese/textured.obj', 'macaroni_and_cheese/texture_map.png', 0.17, up='y', lies=True),
        Thing('wine_bottle', 'wine bottle', (
            ('wine_bottle/wine_bottle_red_main.obj', (0.03, 0.07, 0.03)),
            ('wine_bottle/wine_bottle_red_logo.obj', 'wine_bottle/label_wine.png'),
            ('wine_bottle/wine_bottle_red_cork.obj', 'wine_bottle/cork_texture.png'),
        ), 0.27, lies=True),
        _one('ramekin', 'ramekin', 'glazed_rim_porcelain_ramekin/glazed_rim_porcelain_ramekin.obj', 'glazed_rim_porcelain_ramekin/texture.png', 0.10),
        _one('salad_dressing', 'salad dressing', 'salad_dressing/textured.obj', 'salad_dressing/texture_map.png', 0.16, up='y', lies=True),
        _one('new_salad_dressing', 'salad dressing', 'new_salad_dressing/textured.obj', 'new_salad_dressing/texture_map.png', 0.16, up='y', lies=True, held_out=True),
        _one('chocolate_pudding', 'pudding', 'chocolate_pudding/textured.obj', 'chocolate_pudding/texture_map.png', 0.11),
        _one('bbq_sauce', 'barbecue sauce', 'bbq_sauce/bbq_sauce.obj', 'bbq_sauce/texture_map.png', 0.16, lies=True),
        _one('desk_caddy', 'desk caddy', 'desk_caddy/desk_caddy.obj', (0.45, 0.30, 0.18), 0.22),
    )
}  # fmt: skip
