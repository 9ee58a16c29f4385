"""The budget ledger: what a dataset may ever give away, and what it has given."""
