"""The runtime checker of annotations: on in tests only."""

from beartype import BeartypeConf, beartype

#: An int is a float here, as static checkers have it.
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
