"""The tests, one folder per room; a package so that no installed ``tests`` can stand in its way."""
