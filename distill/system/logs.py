"""The log file of a run, which a disk that fails does not stop."""

import logging
import sys

log = logging.getLogger(__name__)


class LogFile(logging.FileHandler):
    """Says once, in a warning, that it cannot be written; what it was to hold waits for a flush."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Warn of what the disk said; leave the rest to logging."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._warn(error)
        else:
            super().handleError(record)

    def flush(self) -> None:
        """Write what waits; for what a flush raises, nobody else calls `handleError`."""
        try:
            super().flush()
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close, even if what waits cannot be written."""
        try:
            super().close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no log could be written: %s: %s", self.baseFilename, error.strerror)
