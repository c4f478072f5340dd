"""The sandbox: the fleet's hosts on one machine. Only this package knows that they are containers."""
