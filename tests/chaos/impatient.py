"""`gitmirror` whose retention and maintenance do in seconds what they otherwise do in days; all else is as it is.

Run as a program in place of `python -m appliance`.
"""

from __future__ import annotations

from appliance.__main__ import main
from appliance.core.maintenance import maintainer
from appliance.core.recording import retention


def hurry() -> None:
    """Look often, repack for little, and let a night last all day."""
    maintainer.LOOK_EVERY = retention.LOOK_EVERY = 0.5
    maintainer.MOST_PACKS, maintainer.MOST_LOOSE, maintainer.MOST_LOOSE_REFS = 3, 60, 20
    maintainer.NIGHT, maintainer.DAY = range(24), 10.0
    retention.IDLE = 4.0


if __name__ == "__main__":
    hurry()
    main()
