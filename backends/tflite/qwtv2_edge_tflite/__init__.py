"""TFLite backend."""
