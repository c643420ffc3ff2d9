"""Tasks of mixed fates, then a count of what they left: a short form for ``make test``, a long one, ``make soak``."""
