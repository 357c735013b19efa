"""
Feeds: what comes from outside, as arrays.

A feed turns a file, a reply or a stream into typed frames and counts what it refused. It knows no ledger, no engine and
no daemon; of the house it imports ``ledger.columns`` alone.
"""
