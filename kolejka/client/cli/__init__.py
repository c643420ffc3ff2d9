"""The commands of ``kolejka-client``: one thin file per group.

A command declares its options, calls the library, and hands a value to ``output``. ``connection`` gives it the client.
"""
