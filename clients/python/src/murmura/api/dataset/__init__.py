"""Generated from protos/murmura/api/dataset."""
