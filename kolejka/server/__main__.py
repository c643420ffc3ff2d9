"""``python -m kolejka.server``."""

from kolejka.server.cli import run

if __name__ == "__main__":
    run()
