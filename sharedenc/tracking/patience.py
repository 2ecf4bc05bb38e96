"""One request to an MLflow server: what is refused, what may succeed later, how long to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sharedenc.errors import TrackingError
from sharedenc.redact import hide_credentials
from sharedenc.tracking.seam import Patience


class ServerAway(Exception):
    """The request may succeed later: nobody answered, or the server is in trouble.

    ``answered``: somebody did answer, with an error of its own, which may come every time.
    """

    def __init__(self, cause: str, *, answered: bool = False) -> None:
        super().__init__(cause)
        self.answered = answered


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, deepest last."""
    part: BaseException | None = error
    while part is not None:
        yield part
        part = part.__cause__ or part.__context__


def cause_of(error: BaseException) -> str:
    """Why a request failed, in one line: what the system says, if it is the system's fault.

    The libraries in between wrap that in several lines of their own names.
    """
    system = ""
    for part in chain(error):
        if isinstance(part, OSError) and part.strerror:
            system = part.strerror
    lines = hide_credentials(str(error)).splitlines()
    return system or (lines[0][:300] if lines else type(error).__name__)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what MLflow and the network raise into a `TrackingError` of one line."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, ConnectionError, TimeoutError) as error:
        raise TrackingError(
            f"the MLflow server refused or did not answer: {cause_of(error)}"
        ) from error
    except OSError as error:
        raise TrackingError(hide_credentials(str(error))) from error


def guarded(request: Callable[[], Any]) -> Any:
    """Make one request; a server that is away, or has trouble of its own, is ``ServerAway``."""
    import requests
    from mlflow.exceptions import MlflowException

    passing = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR")
    try:
        return request()
    except MlflowException as error:
        if error.error_code in passing:
            # MLflow wraps what the network raises in an error of its own, as INTERNAL_ERROR.
            answered = not any(isinstance(part, OSError) for part in chain(error))
            raise ServerAway(cause_of(error), answered=answered) from error
        raise
    except requests.RequestException as error:
        if error.response is None or error.response.status_code >= 500:
            answered = error.response is not None and error.response.status_code == 500
            raise ServerAway(cause_of(error), answered=answered) from error
        raise


def patiently(request: Callable[[], Any], patience: Patience | None) -> Any:
    """Make a request; as long as there is patience, make it again while the server is away."""
    if patience is None:
        return guarded(request)
    deadline = time.monotonic() + patience.seconds
    tries = 0
    while True:
        try:
            return guarded(request)
        except ServerAway as error:
            tries += 1
            # A server that answers, with an error of its own, does so for a reason.
            if time.monotonic() >= deadline or (error.answered and tries >= 3):
                raise
            if tries == 1:
                patience.tell(
                    f"the MLflow server is away ({error}); waiting up to {patience.seconds:.0f} s"
                )
            patience.meanwhile()
            time.sleep(1.0)


def refused(error: Exception) -> TrackingError:
    return TrackingError(f"MLflow refused a request: {hide_credentials(str(error))}")
