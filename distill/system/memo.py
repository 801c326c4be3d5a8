"""What was found once of things that many share."""

from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")


class Memo:
    """Calls a function once for the same objects, and not for others that are equal to them.

    It keeps what it was called with, so that no other object takes the place of one of them.

    Example:
        >>> memo, words = Memo(), ["soft", "hard"]
        >>> memo(sorted, words) is memo(sorted, words)
        True
    """

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], tuple[object, Any]] = {}

    def __call__(self, make: Callable[..., Found], *of: Any) -> Found:
        """What ``make`` returns for these."""
        key = (make, *map(id, of))
        if key not in self._found:
            self._found[key] = (of, make(*of))
        found: Found = self._found[key][1]
        return found
