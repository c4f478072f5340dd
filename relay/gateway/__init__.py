"""The formats that customers speak."""
