"""Holds, captures, releases and grants; concurrent calls share commits."""
