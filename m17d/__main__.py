"""Run the daemon with ``python -m m17d``."""

from __future__ import annotations

from m17d.main import main

if __name__ == "__main__":
    main()
