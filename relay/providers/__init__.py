"""How providers are reached: one transport, and where each kind of provider is sent to."""
