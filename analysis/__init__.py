"""Finished runs become tables, figures and reports. Imports neither torch nor ray."""
