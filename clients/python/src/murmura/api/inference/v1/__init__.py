"""Generated from protos/murmura/api/inference/v1."""
