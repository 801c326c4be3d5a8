"""Where the yamls of the package lie, in a wheel in it, in a checkout beside it; and its commit."""

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "conf", PACKAGE.parent / "conf")
CONF = next(place for place in PLACES if (place / "config.yaml").is_file())


def commit() -> str | None:
    """The commit of this code in a checkout, with "-dirty" where files of it were changed."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    line = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run(
            [*line, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
        )
        code = [*line, "diff", "--quiet", "HEAD", "--", "distill", "conf", "bench"]
        changed = subprocess.run(code, check=False, capture_output=True).returncode
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of another user
        return None
    return head.stdout.strip() + ("-dirty" if changed else "")
