"""Pure arithmetic of money: units, meters, usage, tariffs and charges."""
