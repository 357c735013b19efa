"""Run the operator's hand as ``python -m m17ctl``; it must never do anything but call `m17ctl.main.main`."""

from __future__ import annotations

from m17ctl.main import main

if __name__ == "__main__":
    main()
