"""The full-screen view: a pure model of what is looked at, thin widgets, one source of data beside them in threads."""
