"""The formats that vendors speak, and the one door to them."""
