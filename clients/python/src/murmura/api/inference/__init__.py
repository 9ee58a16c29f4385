"""Generated from protos/murmura/api/inference."""
