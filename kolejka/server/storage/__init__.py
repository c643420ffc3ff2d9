"""All SQL and all bytes of the server.

``base`` is the small contract of an engine (read, write, close); ``sqlite`` keeps it. The other modules are queries,
written once for every engine: ``?`` stands for a value, ``ON CONFLICT`` and ``RETURNING`` are used, nothing that only
one engine knows. ``blob_folder`` keeps the bytes. Only this package imports peewee.
"""
