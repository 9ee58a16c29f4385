"""Generated from protos/murmura/api/common."""
