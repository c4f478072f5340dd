"""`node`: which nodes there are; one more, one less, another machine in one's place."""
