"""Generated from protos/murmura/api/trainer/v1."""
