"""Money: units, prices, meters, charges, holds and grants."""
