"""Who runs what, and when somebody is lost.

``match``, ``choose``, ``rescue`` and ``why`` decide from values and return values. ``claims`` is where nodes' words
meet the database: each of its functions is one transaction.
"""
