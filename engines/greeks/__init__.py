"""The Greeks engine: implied volatility and Greeks of option trades, from price, the underlying's mid and the curve."""
