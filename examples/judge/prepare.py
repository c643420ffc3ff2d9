"""Make a task folder that judges another submission:  python3 prepare.py SUBMISSION.c FOLDER"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def prepare(submission, folder):
    """Copy the example to ``folder``, which must not exist, with ``submission`` in place of its own."""
    shutil.copytree(str(HERE), str(folder), ignore=shutil.ignore_patterns("submissions", "__pycache__"))
    shutil.copy(str(submission), str(folder / "submission.c"))
    spec = json.loads((folder / "kolejka_task.json").read_text())
    spec["files"]["submission.c"] = None
    (folder / "kolejka_task.json").write_text(json.dumps(spec, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
