"""Generated from protos/murmura/api/ledger."""
