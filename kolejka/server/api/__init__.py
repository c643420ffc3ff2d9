"""HTTP and nothing else: parse, ask, answer. Nothing below this package knows HTTP."""
