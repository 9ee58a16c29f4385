"""Generated from protos/murmura/api/ledger/v1."""
