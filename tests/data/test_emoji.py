"""The packaged emoji: what is in them, and that their splits keep look-alikes together."""

import itertools
from collections import Counter
from importlib.resources import files

import pytest
import torch

from selftaught.core.errors import DataError
from selftaught.data.emoji import emoji_metadata, emoji_styles, read_emoji


def test_every_class_has_one_picture_of_each_style() -> None:
    read = read_emoji()
    assert read.x.dtype == torch.uint8 and read.shape == (3, 32, 32)
    assert read.y is not None and read.groups is not None
    assert len(read.classes) == len(set(read.classes)) == 1594
    assert len(read.names) == len(set(read.names)) == len(read) == 3 * 1594
    assert Counter(read.groups) == dict.fromkeys(emoji_styles(), 1594)
    assert read.y.bincount().unique().tolist() == [3]


def test_pictures_are_drawn_on_white_and_differ() -> None:
    read = read_emoji()
    # A blank picture would be all white (the palest is a white square); few drawings reach all corners.
    assert int((read.x.flatten(1) < 240).sum(1).min()) >= 50
    corners = read.x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).flatten(1).all(1).float().mean() > 0.8
    for style in emoji_styles():
        one = read_emoji(style)
        assert len(torch.unique(one.x.flatten(1), dim=0)) > 0.97 * len(one)


def test_labels_belong_to_the_pictures() -> None:
    read = read_emoji("twemoji")

    def colour(name: str) -> list[float]:
        return read.x[read.classes.index(name), :, 10:22, 10:22].float().mean((1, 2)).tolist()

    red, green, blue = (colour(f"{c} circle") for c in ("red", "green", "blue"))
    assert red[0] > 2 * red[1] and green[1] > 1.3 * green[0] and blue[2] > 1.5 * blue[0]


def test_styles_show_the_same_thing() -> None:
    """The nearest picture of another style is the same emoji far more often than chance (0.06 %)."""
    one, other = (read_emoji(s).x.float().flatten(1) for s in ("twemoji", "noto"))
    one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    near = torch.cdist(one, other).argmin(1)
    assert (near == torch.arange(len(one))).float().mean() > 0.2


def test_splits_are_disjoint_and_cover_everything() -> None:
    parts = [read_emoji(split=s) for s in ("train", "validation", "test")]
    for a, b in itertools.combinations(parts, 2):
        assert not set(a.classes) & set(b.classes)
    assert set().union(*(p.classes for p in parts)) == set(read_emoji().classes)
    for part in parts:
        assert part.y is not None and int(part.y.max()) == len(part.classes) - 1
    whole = read_emoji("noto")
    part = read_emoji("noto", split="test")
    rows = [whole.classes.index(c) for c in part.classes]
    assert torch.equal(part.x, whole.x[rows])


def test_families_stay_within_one_split() -> None:
    about = emoji_metadata()
    splits: dict[str, set[str]] = {}
    for one in about:
        splits.setdefault(one.family, set()).add(one.split)
    assert all(len(s) == 1 for s in splits.values())
    family = {one.name: one.family for one in about}
    together = (
        ("one o’clock", "ten-thirty"),
        ("keycap 1", "keycap 10"),
        ("full moon", "waxing crescent moon"),
        ("up arrow", "down-left arrow"),
        ("red heart", "blue heart"),
        ("man running", "woman running facing right"),
        ("green apple", "red apple"),
        ("chequered flag", "pirate flag"),
        ("man astronaut", "astronaut"),
    )
    for a, b in together:
        assert family[a] == family[b], (a, b)
    assert family["dog"] != family["cat"] and family["pizza"] != family["taco"]


def test_splits_hold_their_share_of_every_group() -> None:
    count = Counter((one.group, one.split) for one in emoji_metadata())
    for group in {g for g, _ in count} - {"Flags"}:  # the flags that are left are one family
        total = sum(n for (g, _), n in count.items() if g == group)
        for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
            assert abs(count[group, split] / total - share) < 0.05, (group, split)


def test_metadata() -> None:
    about = emoji_metadata()
    assert tuple(one.name for one in about) == read_emoji().classes
    pizza = next(one for one in about if one.name == "pizza")
    assert pizza.emoji == "\N{SLICE OF PIZZA}" and pizza.group == "Food & Drink"
    assert "italy" in pizza.keywords and pizza.styles == emoji_styles()


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(DataError, match="there are: twemoji, noto, fluent_flat"):
        read_emoji("apple")
    with pytest.raises(DataError, match="there are: train, validation, test"):
        read_emoji(split="dev")  # type: ignore[arg-type]


def test_package_is_small_and_carries_its_licences() -> None:
    folder = files("selftaught.data") / "packaged"
    sizes = {f.name: len(f.read_bytes()) for f in folder.iterdir() if f.name.startswith(("emoji", "LICENSE"))}
    assert sum(sizes.values()) < 4_000_000
    notice = (folder / "NOTICE.md").read_text(encoding="utf-8")
    for name in sizes:
        assert name in notice, name
    assert "Creative Commons" in (folder / "LICENSE-twemoji.txt").read_text(encoding="utf-8")
    assert "Microsoft" in (folder / "LICENSE-fluent-emoji.txt").read_text(encoding="utf-8")
