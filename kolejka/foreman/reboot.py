"""Booting the machine anew when an admin asks for it.

The node takes no more tasks by then (it is held, as when it drains). What runs either ends by itself or is given back;
results go to the server before anything else, because a machine without a disk has no spool after the boot. Then the
setting ``reboot_command`` runs. The server learns from the next life's boot id that it was done and asks no more; as
long as it asks, a command that failed is tried again.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Final

from kolejka.client.node import REBOOT, REBOOT_WHEN_IDLE
from kolejka.common.errors import InputError
from kolejka.foreman.board import Board

logger = logging.getLogger(__name__)

COMMAND_S: Final = 60.0
AGAIN_S: Final = 60.0
"""after so long a command that failed is tried again"""
DOWN_S: Final = 600.0
"""after so long a machine that did not go down is told so again"""


def reboot_words(command: str) -> list[str]:
    """The command as its words. InputError when it is none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"{command!r} is no command: {error}", field="foreman.reboot_command") from None
    if not words:
        raise InputError(
            "a foreman needs a command to reboot by; /bin/false never does", field="foreman.reboot_command"
        )
    return words


class Reboots:
    """Waits for an admin's word, and for the node to be empty. ``give_back`` ends what runs; ``left`` counts what is
    not at the server yet.
    """

    def __init__(
        self, board: Board, command: str, *, give_back: Callable[[], None], left: Callable[[], int]
    ) -> None:  # fmt: skip
        self._board = board
        self._command = reboot_words(command)
        self._give_back = give_back
        self._left = left
        self._asked: str | None = None
        self._wanted = threading.Event()

    def ask(self, asked: str | None) -> None:
        """What an admin asks now: REBOOT, REBOOT_WHEN_IDLE, or something else."""
        asked = asked if asked in {REBOOT, REBOOT_WHEN_IDLE} else None
        if asked == self._asked:
            return
        with self._board.changed:
            self._asked = asked
            self._board.changed.notify_all()
        if asked is not None:
            logger.warning("node is to reboot, as an admin asks", extra={"when": asked})
            self._wanted.set()

    def close(self) -> None:
        """End the loop. Its waits end with the board."""
        self._wanted.set()

    def loop(self) -> None:
        """Reboot when asked, until the foreman ends."""
        while not self._board.ending.is_set():
            self._wanted.wait()
            self._wanted.clear()
            while self._is_asked():
                self._board.wait(lambda: not self._is_asked(), self._reboot())

    def _is_asked(self) -> bool:
        return self._asked is not None and not self._board.ending.is_set()

    def _reboot(self) -> float:
        """One try; after how long to try again."""
        board, asked = self._board, self._asked
        now = asked == REBOOT
        if now:
            self._give_back()

        def changed() -> bool:
            return self._asked != asked or board.ending.is_set()

        # Who reboots now does not wait for payloads that cannot be killed: the reboot is their cure.
        board.wait(lambda: changed() or (not self._left() and (now or not board.placements())))
        return 0.0 if changed() else self._run(self._command)

    def _run(self, command: Sequence[str]) -> float:
        logger.warning("node reboots", extra={"command": shlex.join(command)})
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=False
            )  # fmt: skip
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = "" if done.returncode == 0 else (said or [f"it ended with {done.returncode}"])[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if reason:
            logger.error("the machine cannot be rebooted", extra={"reason": reason, "next_try_s": AGAIN_S})
        return AGAIN_S if reason else DOWN_S
