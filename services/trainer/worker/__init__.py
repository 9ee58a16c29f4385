"""The ephemeral worker: the private training engine, and the session that runs one job with it.

The engine (`model`, `data`, `engine` and what they use) knows no network. The session feeds it rows and settings
and takes away the adapter.
"""
