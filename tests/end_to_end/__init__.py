"""Tests that start Ray, servers or browsers, or go through the whole program."""
