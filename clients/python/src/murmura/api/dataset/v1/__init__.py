"""Generated from protos/murmura/api/dataset/v1."""
