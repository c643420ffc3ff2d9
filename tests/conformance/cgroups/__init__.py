"""Both versions of control groups pass one suite."""
