"""The shared transformer and everything around it that knows no science."""
