"""Tests of the rooms between a sweep file and finished runs."""
