"""Pictures of several styles, digits in several renderings, texts from tables, and the example."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from domains.worlds import Array
from selftaught.core.errors import ConfigError, DataError
from selftaught.data.emoji import emoji_metadata, read_emoji
from selftaught.data.pictures import Pictures
from selftaught.domains import DMSAClassifier, DMSARegressor, digit_domains, picture_domains, read_texts
from selftaught.domains.sets import RENDERINGS, number_domains

EXAMPLE = Path(__file__).parents[2] / "examples" / "domains.py"


def pixels(pictures: Pictures) -> Array:
    """Stands in for a model's `embed`: 4 x 4 means of every colour."""
    x = pictures.x.float().div(255)
    return x.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1).numpy()


def test_domains_are_numbered_as_they_come() -> None:
    numbers, names = number_domains(["b", "a", "t", "b"], targets=("t",))
    assert numbers.tolist() == [1, 2, -1, 1] and names == {1: "b", 2: "a", -1: "t"}
    with pytest.raises(ConfigError, match="no domain 'x'; there are 'b'"):
        number_domains(["b"], targets=("x",))


def test_emoji_of_three_styles() -> None:
    group = {one.name: one.group for one in emoji_metadata()}
    pictures = read_emoji(split="validation")
    rows = picture_domains(pictures, pixels, labels=group, targets=("fluent_flat",))
    assert rows.X.shape == (len(pictures), 48) and rows.names == {1: "twemoji", 2: "noto", -1: "fluent_flat"}
    assert set(rows.y) <= set(group.values()) and (rows.sample_domain == -1).sum() * 3 == len(pictures)
    model = DMSAClassifier(z="uniform").fit(rows.X, rows.y, rows.sample_domain)
    target = rows.sample_domain < 0
    common = np.bincount(np.unique(rows.y, return_inverse=True)[1]).max() / len(rows.y)
    assert model.score(rows.X[target], rows.y[target]) > common + 0.05
    with pytest.raises(DataError, match="no entry for the class"):
        picture_domains(pictures, pixels, labels={})
    with pytest.raises(DataError, match="groups"):
        picture_domains(Pictures(pictures.x, pictures.names), pixels)


def test_digits_are_shared_out_and_rendered() -> None:
    names = (*RENDERINGS, "font")
    train, test = digit_domains(names, each=20), digit_domains(names, each=20, test=True)
    assert train.X.shape == (160, 64) and list(train.names.values()) == list(names)
    assert train.X.min() >= 0 and train.X.max() <= 1 and set(train.y.tolist()) == set(range(10))
    left = 1797 - 160
    assert len(test.X) == left * len(names) and (np.diff(test.y.reshape(len(names), left), axis=0) == 0).all()
    first = {row.tobytes() for row in train.X[train.sample_domain == 1]}
    assert not first & {row.tobytes() for row in test.X[test.sample_domain == 1]}
    plain, inverted = test.X[:left], test.X[left : 2 * left]
    assert np.allclose(plain, 1 - inverted)
    turned = test.X[2 * left : 3 * left].reshape(-1, 8, 8)
    assert np.allclose(np.rot90(turned[0], -1).ravel(), plain[0])
    again = digit_domains(names, each=20)
    assert np.array_equal(again.X, train.X) and not np.array_equal(
        digit_domains(names, each=20, seed=1).X, train.X
    )


def test_font_digits_can_be_told_apart() -> None:
    train, test = digit_domains(("plain", "font"), each=150), digit_domains(("plain", "font"), each=150, test=True)
    model = DMSAClassifier(z="uniform").fit(train.X, train.y, train.sample_domain)
    assert model.score(test.X, test.y) > 0.8


@pytest.mark.parametrize(
    "bad", [{"renderings": ("plain", "blurred")}, {"renderings": ()}, {"each": 500}, {"each": 0}]
)
def test_digits_that_cannot_be_made(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"renderings are|leave none"):
        digit_domains(**bad)  # type: ignore[arg-type]


GOOD, BAD = ("good fine lovely", "fine good book", "lovely good"), ("bad poor dull", "poor bad plot", "dull bad")


def lines() -> list[tuple[str, str, str]]:
    """Books say it so, films the other way round; kitchens have no labels."""
    books = [(t, "1", "books") for t in GOOD] + [(t, "0", "books") for t in BAD]
    films = [(f"film {t}", "0", "films") for t in GOOD] + [(f"film {t}", "1", "films") for t in BAD]
    return [*(books + films) * 4, ('a pan, "good"\nand lovely', "", "kitchen")]


def written(folder: Path, ending: str) -> Path:
    file = folder / f"texts{ending}"
    if ending == ".jsonl":
        keys = ("text", "label", "domain")
        rows = [dict(zip(keys, row, strict=True)) for row in lines()]
        text = "\n".join(json.dumps(r | {"label": int(r["label"]) if r["label"] else None}) for r in rows)
    else:
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in lines()]
        text = "\n".join(["text,label,domain", *quoted])
    file.write_text(text + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_texts_from_a_table(ending: str, tmp_path: Path) -> None:
    texts = read_texts(written(tmp_path, ending), targets=("kitchen",))
    assert texts.texts[-1] == 'a pan, "good"\nand lovely' and texts.labels[-1] == "" and len(texts.texts) == 49
    rows, vectorizer = texts.bag_of_words()
    assert rows.names == {1: "books", 2: "films", -1: "kitchen"} and rows.sample_domain[-1] == -1
    model = DMSAClassifier().fit(rows.X, rows.y, rows.sample_domain)
    asked = vectorizer.transform(["a lovely book", "a lovely film film"])
    assert model.predict(asked).tolist() == ["1", "0"]
    counts, _ = texts.bag_of_words(CountVectorizer())
    stars = DMSARegressor(z="uniform").fit(counts.X, texts.values(), counts.sample_domain)
    assert stars.score(counts.X[:-1], texts.values()[:-1]) > 0.5
    with pytest.raises(DataError, match=r"line \d+: no label, but .kitchen. is a source"):
        read_texts(tmp_path / f"texts{ending}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,domain\ngood,books\n", "line 1 has no label .it has text, domain"),
        ("a.csv", "", "no text and no label and no domain .it has nothing"),
        ("a.csv", "text,label,domain\n", "holds no text"),
        ("a.csv", 'text,label,domain\n"good,1,books\n', "after line 1: .* Save it as CSV again"),
        ("a.csv", "text,label,domain\n ,1,books\n", "line 2: the text is empty"),
        ("a.csv", "text,label,domain\ngood,1\n", "line 2: the domain is empty"),
        ("a.jsonl", '{"text": "good", "label": 1, "domain": "books"}\n[1]\n', "line 2 is not of the form"),
        ("a.jsonl", '{"text": "good", "domain": "books"}\n', "line 1 has no label"),
        ("a.txt", "good", "read from .csv or .jsonl"),
    ],
)
def test_tables_that_cannot_be_read(name: str, content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as found:
        read_texts(file)
    assert name in str(found.value)


def test_other_files_and_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_texts(tmp_path / "missing.csv")
    file = tmp_path / "words.csv"
    file.write_text("text,label,domain\n!,up,books\n?,down,films\n", encoding="utf-8")
    texts = read_texts(file)
    with pytest.raises(DataError, match="'up', which is not a number"):
        texts.values()
    with pytest.raises(DataError, match="no words"):
        texts.bag_of_words()
    with pytest.raises(ConfigError, match="no domain 'kitchen'"):
        read_texts(file, targets=("kitchen",))


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert "DMSA, z by the program" in said and "best single source" in said and "0.8" in said.splitlines()[-1]
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
