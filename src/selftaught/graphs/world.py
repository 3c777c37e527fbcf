"""A made world: coloured shapes move, one strikes another, and sentences say what went before and what follows.

A scene has a place and actors with tags, each with a shape, a colour, a position and a way to move; one of them
strikes another. Pictures show shapes, colours, positions and the place's ground, never a tag nor a movement; the
sentence says tags, movements and who strikes whom, never a shape nor a colour. The laws of the world, drawn once
from a seed, are tables:

    before    cause   of (shape of the striker, its movement)           "a wave carried the red square"
    present   intent  of (movement of the striker, shape of the struck) "wants to wake the blue star"
    after     effect  of (shape of the struck, movement of the striker, place)  "the blue star breaks apart"

so each text needs something seen and something said, bound by tags and roles. Hyperedges bind what acts together:
before, each actor with its mention and the place; at present the same, but striker and struck in one; after, the
mention of the striker with the struck, the others as before. They follow from tags and sentence by rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.graphs.events import Event, mentions_of

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 48, 40), "green": (30, 132, 60), "blue": (40, 80, 210),
    "yellow": (244, 206, 40), "purple": (140, 50, 170), "black": (24, 24, 24),
}  # fmt: skip
MOVES = ("rolls", "hops", "slides", "spins")
PLACES = {"ice": (206, 232, 244), "sand": (234, 214, 160), "grass": (160, 210, 130), "stone": (176, 176, 176)}
CAUSES = (
    "the wind pushed", "a spring threw", "the slope pulled", "a wave carried",
    "a magnet drew", "a rope dragged", "a spark scared", "a bell called",
)  # fmt: skip
INTENTS = ("tease", "chase", "stop", "pass", "wake", "move", "greet", "break")
EFFECTS = (
    "breaks apart", "rolls away", "sinks slowly", "turns round",
    "bounces back", "falls over", "stands still", "slides off",
)  # fmt: skip
STRIKES, STRUCK = "and strikes", "and is struck"
SIDE, RADIUS = 64, 7
_SPEED = 10.0


@dataclass(frozen=True)
class Laws:
    """Numbers of causes [shape, move], intents [move, shape] and effects [shape, move, place]."""

    cause: Tensor
    intent: Tensor
    effect: Tensor


@dataclass(frozen=True)
class Scene:
    """Actors in the order of their tags 1, 2, ...; `at` and `speed` [A 2] in pixels (a moment) of the present."""

    name: str
    place: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    moves: tuple[str, ...]
    at: Tensor
    speed: Tensor
    striker: int
    struck: int
    order: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """A clause for each actor in the order of telling."""
        role = {self.striker: f" {STRIKES}", self.struck: f" {STRUCK}"}
        return ", ".join(f"{k + 1} {self.moves[k]}{role.get(k, '')}" for k in self.order)

    def named(self, actor: int) -> str:
        """Colour and shape."""
        return f"the {self.colours[actor]} {self.shapes[actor]}"

    @property
    def positions(self) -> Tensor:
        """[3 A 2] before, at present, after: striker and struck exchange velocities, as equal masses do."""
        after = self.speed.clone()
        after[[self.striker, self.struck]] = self.speed[[self.struck, self.striker]]
        moved = torch.stack([self.at - self.speed, self.at, self.at + after])
        return moved.clamp(RADIUS, SIDE - RADIUS)


def draw_laws(seed: int) -> Laws:
    """The tables of one world."""
    generator = torch.Generator().manual_seed(seed)
    s, m, p = len(SHAPES), len(MOVES), len(PLACES)

    def table(values: int, *sizes: int) -> Tensor:
        return torch.randint(values, sizes, generator=generator)

    return Laws(table(len(CAUSES), s, m), table(len(INTENTS), m, s), table(len(EFFECTS), s, m, p))


def draw_scenes(count: int, seed: int, actors: int = 3) -> list[Scene]:
    """`count` scenes with everything drawn evenly. Raises ConfigError for fewer than 2 or more than 6 actors."""
    if not 2 <= actors <= 6 or count < 1:
        raise ConfigError(f"{count} scenes of {actors} actors: draw at least 1, with 2 to 6 actors")
    generator = torch.Generator().manual_seed(seed)
    return [_scene(n, seed, actors, generator) for n in range(count)]


def texts_of(scene: Scene, laws: Laws) -> tuple[str, str, str]:
    """What is to be written before, at present and after."""
    a, b = scene.striker, scene.struck
    shape, other = SHAPES.index(scene.shapes[a]), SHAPES.index(scene.shapes[b])
    move, place = MOVES.index(scene.moves[a]), list(PLACES).index(scene.place)
    return (
        f"{CAUSES[int(laws.cause[shape, move])]} {scene.named(a)}",
        f"wants to {INTENTS[int(laws.intent[move, other])]} {scene.named(b)}",
        f"{scene.named(b)} {EFFECTS[int(laws.effect[other, move, place])]}",
    )


def hypergraphs_of(tags: Sequence[int], sentence: str) -> tuple[Tensor, Tensor, Tensor]:
    """PyG's [2 nnz] for each moment, from what every model is told: objects' tags and the sentence.

    Raises DataError for a sentence of no collision or with a tag of no object.
    """
    mentions = mentions_of(sentence)
    said = {tag: len(tags) + n for n, (tag, _) in enumerate(mentions)}
    role = {" ".join(w for w in words[1:]): tag for tag, words in mentions}
    if STRIKES not in role or STRUCK not in role or not set(said) <= set(tags):
        raise DataError(f"{sentence!r} says not who strikes whom among the tags {list(tags)}")
    a, b, place = role[STRIKES], role[STRUCK], len(tags) + len(mentions)
    own = {tag: [list(tags).index(tag), said[tag], place] for tag in said}
    both = {tag: nodes for tag, nodes in own.items() if tag not in (a, b)} | {a: [*own[a], *own[b][:2]]}
    return _index(own), _index(both), _index(own | {b: [*own[b], said[a]]})


def render(scene: Scene) -> UInt8[Tensor, "3 3 H W"]:
    """Pictures before, at present and after; models see the one in the middle."""
    frames = []
    for at in scene.positions.tolist():
        image = Image.new("RGB", (SIDE, SIDE), PLACES[scene.place])
        pen = ImageDraw.Draw(image)
        for shape, colour, (x, y) in zip(scene.shapes, scene.colours, at, strict=True):
            _draw(pen, shape, COLOURS[colour], x, y)
        frames.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3))
    return torch.stack(frames).permute(0, 3, 1, 2).contiguous()


def boxes_of(scene: Scene) -> Tensor:
    """[A 4] left, top, right, bottom at present, from 0 to 1."""
    at = scene.positions[1]
    return torch.cat([at - RADIUS, at + RADIUS], dim=1) / SIDE


def crops_of(scene: Scene) -> UInt8[Tensor, "A 3 16 16"]:
    """Every actor at present, with two pixels of what surrounds it."""
    picture = torch.nn.functional.pad(render(scene)[1], (8, 8, 8, 8))
    corners = scene.positions[1].round().long().tolist()
    return torch.stack([picture[:, y : y + 16, x : x + 16] for x, y in corners])


def event_of(scene: Scene, laws: Laws, features: Tensor) -> Event:
    """The scene as a model meets it, with `features` [A F] of its actors' crops."""
    tags = list(range(1, len(scene.shapes) + 1))
    before, present, after = texts_of(scene, laws)
    return Event(
        scene.name, features, boxes_of(scene), torch.tensor(tags), scene.sentence, scene.place,
        hypergraphs_of(tags, scene.sentence), ((before,), (present,), (after,)),
    )  # fmt: skip


def words_of_world() -> str:
    """Every word that sentences, places and texts can have, for `HEGR.vocabulary`."""
    said = [*SHAPES, *COLOURS, *MOVES, *PLACES, *CAUSES, *INTENTS, *EFFECTS, STRIKES, STRUCK, "wants to the"]
    return " ".join(sorted({word for text in said for word in text.split()}))


def _index(edges: dict[int, list[int]]) -> Tensor:
    return torch.tensor([(node, edge) for edge, nodes in enumerate(edges.values()) for node in nodes]).T


def _scene(number: int, seed: int, actors: int, generator: torch.Generator) -> Scene:
    def some(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(values[i] for i in torch.randint(len(values), (actors,), generator=generator).tolist())

    shapes, colours, moves = some(SHAPES), some(tuple(COLOURS)), some(MOVES)
    place = some(tuple(PLACES))[0]
    order = torch.randperm(actors, generator=generator).tolist()
    striker, struck = torch.randperm(actors, generator=generator)[:2].tolist()
    at, towards = _places(actors, striker, struck, generator)
    angle = 6.2832 * torch.rand(actors, generator=generator)
    speed = _SPEED * torch.stack([angle.cos(), angle.sin()], dim=1)
    speed[striker], speed[struck] = _SPEED * towards, 0.0
    return Scene(
        f"world{seed}/scene{number:05d}", place, shapes, colours, moves, at, speed, striker, struck, tuple(order)
    )


def _places(actors: int, striker: int, struck: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions [A 2] in which only striker and struck touch, and the direction from the one to the other."""
    while True:
        # Cells of a 3 x 3 grid keep actors apart; the striker then moves up to the struck.
        cell = torch.randperm(9, generator=generator)[:actors]
        at = torch.stack([cell % 3, cell // 3], dim=1) * 20.0 + 10 + 4 * torch.rand(actors, 2, generator=generator)
        towards = at[struck] - at[striker]
        towards = towards / towards.norm()
        at[striker] = at[struck] - 2 * RADIUS * towards
        if float(torch.pdist(at).min()) > 2 * RADIUS - 1:
            return at, towards


def _draw(pen: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: float, y: float) -> None:
    r = RADIUS - 1
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=colour)
    else:
        pen.polygon([(x + r * u, y + r * v) for u, v in _OUTLINES[shape]], fill=colour)


_OUTLINES = {
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "star": ((0, -1), (0.25, -0.3), (1, -0.3), (0.4, 0.15), (0.6, 1), (0, 0.45), (-0.6, 1), (-0.4, 0.15),
             (-1, -0.3), (-0.25, -0.3)),
}  # fmt: skip
