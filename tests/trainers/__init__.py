"""Tests of one trial and its parts."""
