"""Tests of statistics, tables, figures and reports."""
