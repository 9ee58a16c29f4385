"""Generated from protos/murmura/api/common/v1."""
