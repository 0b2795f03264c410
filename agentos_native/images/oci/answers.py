"""Asking the confined child about documents: not twice about the same one, and not before there is a question.

`survey` is a pure function, so that an answer holds for as long as this program runs. With it, an image whose layers
are all in the store is imported again without any other process: the index, the manifest and the config are read and
hashed here, and what they say is known.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from types import TracebackType
from typing import Final, Self, TypeVar

from agentos_native.images.model import Limits
from agentos_native.images.oci import model
from agentos_native.images.oci.survey import ask
from agentos_native.images.session import Session

T = TypeVar("T")
_BYTES_MAX: Final = 4 << 20


class _Known:
    """Answers by question, the last used ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0

    def get(self, question: bytes) -> bytes | None:
        with self._lock:
            answer = self._answers.get(question)
            if answer is not None:
                self._answers.move_to_end(question)
            return answer

    def put(self, question: bytes, answer: bytes) -> None:
        with self._lock:
            self._size += len(answer) - len(self._answers.pop(question, b""))
            self._answers[question] = answer
            while self._size > _BYTES_MAX:
                self._size -= len(self._answers.popitem(last=False)[1])


_known: Final = _Known()


class LateSession:
    """A `Session` that begins when it is first needed; a context, as that is."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The session, begun if need be."""
        if self._session is None:
            self._session = Session(self._limits)
        return self._session

    def dismiss(self) -> None:
        """See `Session.dismiss`; there may be none."""
        if self._session is not None:
            self._session.dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()


class Asking:
    """Asks `survey` by way of a session."""

    def __init__(self, session: Session | LateSession) -> None:
        self._session = session

    def about(self, question: model.Question, answer: type[T]) -> T:
        """What `survey` answers; it raises as that does."""
        return ask(self, question, answer)

    def __call__(self, task: str, request: bytes) -> bytes:
        """See `survey.Ask`."""
        key = hashlib.sha256(request).digest()
        answer = _known.get(key)
        if answer is None:
            session = self._session if isinstance(self._session, Session) else self._session.session
            answer = session.ask(task, request)
            _known.put(key, answer)
        return answer
