"""What customers and providers speak. Pure: bytes in, bytes out."""
