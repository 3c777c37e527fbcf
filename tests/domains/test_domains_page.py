"""The page's table of options is that of the estimators."""

import inspect
import re
from pathlib import Path

from selftaught.domains import DMSAClassifier, DMSARegressor

PAGE = Path(__file__).parents[2] / "docs" / "domains.md"


def test_options_and_defaults_are_those_of_the_constructors() -> None:
    written = dict(
        re.findall(
            r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text("utf-8").partition("## Options")[2], re.MULTILINE
        )
    )
    for estimator in (DMSAClassifier, DMSARegressor):
        known = inspect.signature(estimator).parameters
        assert written == {name: repr(p.default) for name, p in known.items()}
