"""Putting tasks and getting results from Python.

::

    from kolejka.client import KolejkaClient

    with KolejkaClient() as client:  # server and token as the command line finds them
        task = client.put_task("examples/uname")  # a folder with a kolejka_task.json
        result = client.get_result(task["id"], "RESULT", wait=True)  # a folder that does not exist yet
        print(result.outcome, result.stats.cpu.usage)

``KolejkaClient(server="https://kolejka.example", token="klj_…")`` names them. ``client.execute(folder, result_folder)``
does put, wait and get in one; ``client.put_spec({"args": ["uname"]})`` takes a task without a folder. All that can
go wrong is a ``kolejka.common.errors.KolejkaError`` that says so in one line: ``InputError`` and its kinds when the
caller's words are wrong, ``Unavailable`` when the server does not answer, ``NodeError`` when this machine fails.

Inside: ``transport`` is the one place that sends HTTP; ``transfers`` moves bytes; ``results`` makes result folders;
``credentials`` finds the token; ``client`` is the user's side, ``node`` the foreman's; ``cli`` are the commands.
"""

from kolejka.client.client import KolejkaClient
from kolejka.client.node import NodeClient

__all__ = ["KolejkaClient", "NodeClient"]
