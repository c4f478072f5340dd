"""How the fleet is watched: alert rules with their tests, and a page for each alert."""
