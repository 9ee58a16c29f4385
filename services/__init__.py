"""Murmura's services: dataset, ledger, trainer and inference, and what they share."""
