"""The inference service: verified adapters on one engine, answers with privacy statements."""
