"""The report of a session as one HTML page that needs nothing but itself."""
