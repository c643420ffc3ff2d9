"""What a server process knows of the classes of waiting tasks, so that a claim need not ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kolejka.server.scheduling.board import Board, Class, Entry
from kolejka.server.scheduling.match import Offer, Signature, can_ever_run
from kolejka.server.storage import tasks
from kolejka.server.storage.base import Announcement, Connection, Missed, TaskWaiting

_REMEMBERED: Final = 100_000


@dataclass
class Classes:
    """What a server process knows of signatures, and which classes wait.

    Signatures never change: their ids derive from their words. ``board`` says itself how it stays true.
    """

    board: Board = field(default_factory=Board)
    _signatures: dict[int, Signature] = field(default_factory=dict)
    _tags: set[str] = field(default_factory=set)
    _loaded: bool = False

    def signature(self, db: Connection, signature: int) -> Signature:
        """The signature of an id."""
        known = self._signatures.get(signature)
        if known is None:
            known = Signature.parse(tasks.signature_words(db, signature))
            self.learn(known)
        return known

    def learn(self, signature: Signature) -> None:
        """Remember a signature that was made here."""
        if len(self._signatures) >= _REMEMBERED:
            self._signatures.clear()
        self._tags.update(signature.requires)
        self._signatures[signature.id] = signature

    def known(self, signature: int) -> Signature | None:
        """The signature of an id, if it was met before."""
        return self._signatures.get(signature)

    def heard(self, announcements: Sequence[Announcement]) -> None:
        """What a transaction has announced. Words that got lost are made up for by the next claim."""
        if any(isinstance(one, Missed) for one in announcements):
            self._loaded = False
        first: dict[Class, int] = {}
        for one in announcements:
            if isinstance(one, TaskWaiting):
                name = Class(one.queue, one.signature, one.rank, one.owner)
                first[name] = min(one.number, first.get(name, one.number))
        self.board.add(first.items())

    def refresh(self, db: Connection) -> list[tuple[Class, int]]:
        """Put all that waits on the board, whatever was heard: each class and its oldest number."""
        self._loaded = True  # first: what is missed from here on is asked for again
        waiting = [
            (Class(queue, signature, rank, owner), first)
            for queue, signature, rank, owner, first in tasks.waiting_groups(db)
        ]
        self.board.add(waiting)
        return waiting

    def lines(self, db: Connection, offer: Offer) -> dict[tuple[int, str], list[Entry]]:
        """Owner and queue → the classes that a node with this offer could ever run, in their order."""
        if not self._loaded:
            self.refresh(db)

        def possible(name: Class) -> bool:
            return can_ever_run(self.signature(db, name.signature), offer.tags, offer.total)

        amounts = json.dumps(offer.total.to_json())
        while True:
            tags = offer.tags & self._tags  # what nobody requires makes no difference between nodes
            lines = self.board.lines((tags, amounts), possible)
            if offer.tags & self._tags == tags:  # no signature was met that requires another
                return lines
