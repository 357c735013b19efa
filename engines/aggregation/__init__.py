"""
Aggregation: the rolling statistics of an underlying over its own trades and those of its options.

Windows of 1, 5, 10, 30, 60 and 240 minutes start at every minute of a session. ``columns`` has the words, ``policy``
the settings, ``inputs`` turns rows into samples, ``kernel`` computes the windows (compiled, in workers only).
"""
