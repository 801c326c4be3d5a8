"""Where the yamls of this package lie: in a wheel in the package, in a checkout beside it."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "conf", PACKAGE.parent / "conf")
CONF = next(place for place in PLACES if (place / "config.yaml").is_file())
