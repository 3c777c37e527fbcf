"""The type checker that reads the shape annotations while the tests run."""

from beartype import BeartypeConf, beartype

# As everywhere in Python's type system, an int is a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
