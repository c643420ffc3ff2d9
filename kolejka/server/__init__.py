"""The server: keeps tasks, gives them to nodes, keeps results.

``app`` shows every route; ``api`` speaks HTTP; ``scheduling`` decides; ``storage`` remembers; ``auth`` tells callers.
"""
