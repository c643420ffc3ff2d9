"""``python -m image``: build the node's image and everything that boots it, into one folder (``make image``)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from image import media
from image.build import TOOLS, BuildError, build, check_tools
from image.recipe import ENGINES, GPUS, KERNELS, LEVEL, PROJECT, Recipe, commit_epoch, suite, version_of, words_of_hook

STORE = PROJECT / "build" / "image"


def main() -> int:
    """Build what the words say. The exit status is 1, with one line, when that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m image", description=__doc__)
    parser.add_argument("--engine", choices=tuple(ENGINES), default="none", help="container engine [%(default)s]")
    parser.add_argument(
        "--kernel", choices=tuple(KERNELS), default="generic", help="generic drives hardware [%(default)s]"
    )
    parser.add_argument("--gpu", choices=GPUS, default="none", help="run image/hooks/GPU in the image [%(default)s]")
    parser.add_argument("--packages", default="", help="further Debian packages, with commas or spaces between")
    parser.add_argument("--level", type=int, default=LEVEL, choices=range(1, 20), metavar="1…19", help="compression")
    parser.add_argument("--version", default="", help="the image's version [that of the tree and of its last commit]")
    parser.add_argument("--output", type=Path, default=STORE / "out", help="folder to fill [%(default)s]")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of what is kept between builds")
    parser.add_argument("--fresh", action="store_true", help="build everything anew, whatever is kept")
    words = parser.parse_args()
    try:
        release = suite()
        if release is None:
            raise BuildError("no Debian has this Python; make .venv with Python 3.11 or 3.13 (make PYTHON=…)")
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or commit_epoch())
        recipe = Recipe(
            release, words.kernel, words.engine, words.gpu, words_of_hook(words.gpu, os.environ),
            tuple(words.packages.replace(",", " ").split()), words.level, epoch, words.version or version_of(epoch),
        )  # fmt: skip
        check_tools({**TOOLS, **media.TOOLS})
        image = build(recipe, words.store, fresh=words.fresh)
        words.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".out-", dir=words.output.parent) as scratch:
            fresh = Path(scratch) / "out"
            media.write_media(image, fresh, version=recipe.version, epoch=epoch)
            if words.output.is_dir():
                shutil.rmtree(words.output)
            fresh.rename(words.output)
    except ImportError as error:
        print(f"image: {error}; run make setup", file=sys.stderr)
        return 1
    except (BuildError, OSError, ValueError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    for path in sorted(words.output.iterdir()):
        print(f"{path.stat().st_size / (1 << 20):8.1f} MiB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
