"""Murmura's contracts, generated from protos/ by `make codegen`; never edited by hand."""
