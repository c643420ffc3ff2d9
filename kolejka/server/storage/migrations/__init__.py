"""Numbered steps from each schema to the next, applied by peewee's runner, recorded in ``schema_migration``.

Each is frozen once it was released: it carries its own copy of the tables and imports nothing of the server.
"""
